/*
 * A device that is written for VPCIe's interface: it writes a page of bytes that count up to host
 * memory, and adds up such a page.
 *
 *   0 CONTROL  write 1: writes the page, then reads 2. write 3: adds the page up, then reads 4
 *   4, 8 ADDRESS, low and high half   12 FIRST, the page's first byte   16 SUM
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "pcie.h"

enum { CONTROL, ADDRESS, ADDRESS_HIGH, FIRST, SUM, COUNT };

struct pattern {
    pcie_dev_t dev;
    uint32_t registers[COUNT];
};

static void work(void *arg)
{
    struct pattern *pattern = arg;
    uint32_t *registers = pattern->registers;
    uint64_t address = (uint64_t)registers[ADDRESS_HIGH] << 32 | registers[ADDRESS];
    pcie_net_msg_t *message = malloc(PCIE_NET_MSG_MAX_SIZE);
    int n;
    if (registers[CONTROL] == 1) {
        message->op = PCIE_NET_OP_WRITE_MEM;
        message->addr = address;
        message->size = 0x1000;
        for (n = 0; n < 0x1000; n++)
            message->data[n] = (uint8_t)(registers[FIRST] + n);
        pcie_net_send_msg(&pattern->dev.net, message);
    } else {
        uint8_t page[0x1000];
        registers[SUM] = registers[FIRST];
        if (pcie_read_host_mem(&pattern->dev, address, page, sizeof page) == 0)
            for (n = 0; n < 0x1000; n++)
                registers[SUM] += page[n];
    }
    free(message);
    registers[CONTROL]++;
    pcie_send_msi(&pattern->dev);
}

static void on_read(uint64_t at, void *data, size_t size, void *arg)
{
    struct pattern *pattern = arg;
    if (at + size <= sizeof pattern->registers)
        memcpy(data, (uint8_t *)pattern->registers + at, size);
}

static void on_write(uint64_t at, const void *data, size_t size, void *arg)
{
    struct pattern *pattern = arg;
    if (at + size > sizeof pattern->registers)
        return;
    memcpy((uint8_t *)pattern->registers + at, data, size);
    if (at == 0)
        pcie_add_task(&pattern->dev, 1000, work, pattern);
}

int main(int count, char **words)
{
    static struct pattern pattern;
    if (count < 5 || pcie_init_net(&pattern.dev, words[1], words[2], words[3], words[4]))
        return 1;
    pcie_set_vendorid(&pattern.dev, 0x2a2a);
    pcie_set_deviceid(&pattern.dev, 0x2b2b);
    pcie_set_bar(&pattern.dev, 0, 0x100, on_read, on_write, &pattern);
    if (pcie_loop(&pattern.dev))
        return 1;
    return pcie_fini(&pattern.dev);
}
