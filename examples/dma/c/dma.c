/* A DMA engine with the registers of examples/dma/README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <viaduct.h>

enum { SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, COMMAND = 0x1c, STATUS = 0x20,
       PENDING = 0x24, COUNT = 0x28, REGISTERS = 0x40 };
enum { BUSY = 1, DONE = 2, FAILED = 4, LONGEST = 1 << 20 };

struct engine {
    viaduct_device *dev;
    uint8_t registers[REGISTERS];
    uint8_t buffer[LONGEST];
};

static uint64_t get(struct engine *engine, unsigned at, size_t len)
{
    uint64_t value = 0;
    memcpy(&value, engine->registers + at, len);
    return value;
}

static void set(struct engine *engine, unsigned at, uint32_t value)
{
    memcpy(engine->registers + at, &value, 4);
}

static void finish(void *arg, int status)
{
    struct engine *engine = arg;
    set(engine, STATUS, status ? DONE | FAILED : DONE);
    set(engine, COUNT, get(engine, COUNT, 4) + 1);
    set(engine, PENDING, 1);
    viaduct_interrupt(engine->dev, 0);
}

static void write_back(void *arg, int status)
{
    struct engine *engine = arg;
    size_t len = get(engine, LENGTH, 4);
    uint64_t destination = get(engine, DESTINATION, 8);
    if (!status)
        status = viaduct_host_write_start(engine->dev, destination, engine->buffer, len, finish,
                                          engine);
    if (status)
        finish(engine, status);
}

static void start(struct engine *engine)
{
    size_t len = get(engine, LENGTH, 4);
    int status = -1;
    set(engine, STATUS, BUSY);
    if (len <= LONGEST)
        status = viaduct_host_read_start(engine->dev, get(engine, SOURCE, 8), engine->buffer, len,
                                         write_back, engine);
    if (status)
        finish(engine, status);
}

static void on_read(void *arg, unsigned bar, uint64_t offset, void *data, size_t len)
{
    struct engine *engine = arg;
    (void)bar;
    if (offset + len <= REGISTERS)
        memcpy(data, engine->registers + offset, len);
}

static void on_write(void *arg, unsigned bar, uint64_t offset, const void *data, size_t len)
{
    struct engine *engine = arg;
    (void)bar;
    if (offset == COMMAND && *(const uint8_t *)data == 1) {
        start(engine);
    } else if (offset == PENDING) {
        set(engine, PENDING, 0);
        viaduct_line(engine->dev, 0);
    } else if ((offset >= SOURCE && offset < COMMAND) || offset >= 0x30) {
        if (offset + len <= REGISTERS)
            memcpy(engine->registers + offset, data, len);
    }
}

static void on_reset(void *arg, int kind)
{
    struct engine *engine = arg;
    (void)kind;
    memset(engine->registers, 0, REGISTERS);
    memcpy(engine->registers, "VDMA", 4);
    viaduct_line(engine->dev, 0);
}

int main(int count, char **words)
{
    const struct viaduct_handlers handlers = {
        .read = on_read, .write = on_write, .reset = on_reset };
    struct engine *engine = calloc(1, sizeof *engine);
    viaduct_device *dev = engine->dev = viaduct_new("dma engine in c", 0x1234, 0x0da7);
    memcpy(engine->registers, "VDMA", 4);
    viaduct_set_bar(dev, 0, VIADUCT_MEMORY32, 4096);
    viaduct_set_intx(dev);
    viaduct_set_msi(dev, 1);
    viaduct_set_msix(dev, 1, 0, 0x800, 0xc00);
    viaduct_set_handlers(dev, &handlers, engine);
    if (viaduct_connect(dev, count > 1 ? words[1] : NULL) || viaduct_run(dev)) {
        fprintf(stderr, "dma: %s\n", viaduct_error(dev));
        return 1;
    }
    return 0;
}
