/*
 * Calls every function of VPCIe's interface and checks what comes of it.
 *
 *   0 RESULT   write 1: begins; then 0x600d, or the line of the first check that failed
 *   4, 8 ADDRESS of a page, low and high half   16 a write ends the program in good order
 */
#include <stdlib.h>
#include <unistd.h>
#include "pcie.h"

enum { RESULT, ADDRESS, ADDRESS_HIGH, UNUSED, END, COUNT, GOOD = 0x600d };

struct card {
    pcie_dev_t dev;
    uint32_t registers[COUNT];
    unsigned seen;
    int events[2];
};

#define CHECK(what) \
    do { \
        if (!(what) && !failed) \
            failed = __LINE__; \
    } while (0)

static uint32_t failed;

static void never(void *arg)
{
    (void)arg;
    failed = __LINE__;
}

static int on_event(unsigned key, void *arg)
{
    struct card *card = arg;
    if (key == 7)
        return 1;
    card->seen = card->seen * 10 + key;
    if (card->seen == 123)
        card->registers[RESULT] = failed ? failed : GOOD;
    return 0;
}

static void last(void *arg)
{
    const unsigned keys[] = { 1, 2, 3 };
    struct card *card = arg;
    CHECK(pcie_send_msi(&card->dev) == 0);
    CHECK(write(card->events[1], keys, sizeof keys) == sizeof keys);
}

static void memory(void *arg)
{
    struct card *card = arg;
    pcie_dev_t *dev = &card->dev;
    uint64_t address = (uint64_t)card->registers[ADDRESS_HIGH] << 32 | card->registers[ADDRESS];
    uint8_t page[0x1000], back[0x1000];
    pcie_net_msg_t *message = malloc(PCIE_NET_MSG_MAX_SIZE);
    const struct timeval delay = { 0, 1000 };
    int n;
    for (n = 0; n < 0x1000; n++)
        page[n] = (uint8_t)(9 + n);
    CHECK(pcie_write_host_mem(dev, address, page, sizeof page) == 0);
    CHECK(pcie_read_host_mem(dev, address, back, sizeof back) == 0);
    CHECK(memcmp(page, back, sizeof page) == 0);
    CHECK(pcie_write_host_mem(dev, UINT64_MAX - 0xfff, page, 16) == -1);
    message->op = PCIE_NET_OP_WRITE_MEM;
    message->addr = address + 0x100;
    message->size = 0x100;
    memcpy(message->data, page + 0x100, 0x100);
    CHECK(pcie_net_send_msg(&dev->net, message) > 0);
    message->op = PCIE_NET_OP_MSI;
    message->size = 8;
    CHECK(pcie_net_send_msg(&dev->net, message) > 0);
    free(message);
    CHECK(pcie_net_add_task(&dev->net, &delay, last, card) == 0);
}

static void on_read(uint64_t at, void *data, size_t size, void *arg)
{
    struct card *card = arg;
    if (at + size <= sizeof card->registers)
        memcpy(data, (uint8_t *)card->registers + at, size);
}

static void on_write(uint64_t at, const void *data, size_t size, void *arg)
{
    const unsigned stop = 7;
    struct card *card = arg;
    if (at + size > sizeof card->registers)
        return;
    memcpy((uint8_t *)card->registers + at, data, size);
    if (at == 0) {
        /* One task at a time: the second takes the first one's place. */
        CHECK(pcie_add_task(&card->dev, 1000, never, card) == 0);
        CHECK(pcie_add_task(&card->dev, 1000, memory, card) == 0);
    } else if (at == 4 * END) {
        CHECK(write(card->events[1], &stop, sizeof stop) == sizeof stop);
    }
}

static void config(pcie_dev_t *dev)
{
    uint32_t word = 0x22221111;
    CHECK(pcie_set_vendorid(dev, 0x2a2a) == 0);
    CHECK(pcie_set_deviceid(dev, 0x2c2c) == 0);
    CHECK(pcie_read_config_long(dev, 0) == 0x2c2c2a2a);
    CHECK(pcie_write_config(dev, 0x2c, &word, 4) == 0);
    CHECK(pcie_read_config_word(dev, 0x2e) == 0x2222);
    CHECK(pcie_write_config_byte(dev, 0x08, 0x42) == 0);
    CHECK(pcie_read_config_byte(dev, 0x08) == 0x42);
    CHECK(pcie_write_config_word(dev, 0x2e, 0x3333) == 0);
    CHECK(pcie_write_config_long(dev, 0x2d, 0) == -1);
    CHECK(pcie_read_config_word(dev, 0x1000) == 0xffff);
    CHECK(pcie_read_config(dev, 0x2c, &word, 4) == 0 && word == 0x33331111);
    CHECK(pcie_write_config_safe(dev, 0x2e, &word, 2) == 0);
    CHECK(pcie_read_config_safe(dev, 0x2c, &word, 4) == 0 && word == 0x11111111);
    CHECK(pcie_write_config_long(dev, 0x2c, 0x5a5a2a2a) == 0);
}

int main(void)
{
    static struct card card;
    pcie_dev_t *dev = &card.dev;
    if (pipe(card.events) || pcie_init_net(dev, "127.0.0.1", "42425", "127.0.0.1", "42424"))
        return 1;
    config(dev);
    CHECK(pcie_set_bar(dev, 0, 0x100, on_read, on_write, &card) == 0);
    CHECK(pcie_set_bar(dev, 1, 0x1000, NULL, NULL, NULL) == 0);
    CHECK(pcie_set_bar(dev, 6, 0x100, NULL, NULL, NULL) == -1);
    CHECK(pcie_set_bar(dev, 2, 0x101, NULL, NULL, NULL) == -1);
    CHECK(pcie_net_add_ev(&dev->net, card.events[0], on_event, &card) == 0);
    if (pcie_loop(dev))
        return 2;
    return pcie_fini(dev) || failed;
}
