/*
 * A card whose reads are hard to answer. 0: its name. 8, 12: an address, low and high half. 16: the
 * four bytes of host memory there, fetched while the driver waits. 32: never answered.
 */
#include <stdio.h>
#include <string.h>
#include <viaduct.h>

static viaduct_device *dev;
static uint64_t address;

static void on_read(void *arg, unsigned bar, uint64_t offset, size_t len, viaduct_answer *answer)
{
    uint8_t data[8] = "VDHE";
    (void)arg;
    (void)bar;
    if (offset == 16 && viaduct_host_read(dev, address, data, 4))
        memset(data, 0xee, sizeof data);
    if (offset != 32)
        viaduct_answer_read(answer, data, len < sizeof data ? len : sizeof data);
}

static void on_write(void *arg, unsigned bar, uint64_t offset, const void *data, size_t len)
{
    (void)arg;
    (void)bar;
    if (offset >= 8 && offset + len <= 16)
        memcpy((uint8_t *)&address + (offset - 8), data, len);
}

int main(void)
{
    static const struct viaduct_handlers handlers = { .read_later = on_read, .write = on_write };
    dev = viaduct_new("hesitant", 0x1234, 0x4e51);
    viaduct_set_bar(dev, 0, VIADUCT_MEMORY32, 4096);
    viaduct_set_handlers(dev, &handlers, NULL);
    if (viaduct_connect(dev, NULL) || viaduct_run(dev)) {
        fprintf(stderr, "hesitant: %s\n", viaduct_error(dev));
        return 1;
    }
    return 0;
}
