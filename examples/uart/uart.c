/*
 * A serial port on a PCI card: a 16550A in eight I/O ports, for which every system has a driver.
 * What is sent comes out at standard output, and back in capital letters.
 *
 *     cc uart.c -lviaduct -o uart
 *     viaduct pcie --socket /tmp/uart.sock --model ./uart
 *
 * In the guest it is the next /dev/ttyS. Registers: PC16550D data sheet, National Semiconductor.
 */
#include <ctype.h>
#include <stdio.h>
#include <viaduct.h>

enum { DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCRATCH };
enum { FIFO = 4096 };

static struct {
    viaduct_device *dev;
    uint8_t ier, fcr, lcr, mcr, scratch, divisor[2];
    /* The transmitter has become empty and nobody has been told. */
    int is_empty;
    uint8_t fifo[FIFO];
    unsigned first, count;
} uart;

/* What the interrupt identification register says; 1 is nothing. */
static uint8_t reason(void)
{
    if (uart.ier & 1 && uart.count)
        return 4;
    if (uart.ier & 2 && uart.is_empty)
        return 2;
    return 1;
}

static void update(void)
{
    /* OUT2 is the gate of the interrupt, as in every PC. */
    viaduct_line(uart.dev, reason() != 1 && uart.mcr & 8);
}

static uint8_t get(unsigned at)
{
    uint8_t value = 0xff;
    switch (at) {
    case DATA:
        if (uart.lcr & 0x80)
            return uart.divisor[0];
        value = 0;
        if (uart.count) {
            value = uart.fifo[uart.first++ % FIFO];
            uart.count--;
        }
        break;
    case IER:
        return uart.lcr & 0x80 ? uart.divisor[1] : uart.ier;
    case IIR_FCR:
        value = reason();
        if (value == 2)
            uart.is_empty = 0;
        value |= uart.fcr & 1 ? 0xc0 : 0;
        break;
    case LCR:
        return uart.lcr;
    case MCR:
        return uart.mcr;
    case LSR:
        return 0x60 | (uart.count != 0);
    case MSR:
        /* In loopback the outputs are the inputs. */
        if (uart.mcr & 0x10)
            return (uart.mcr & 2) << 3 | (uart.mcr & 1) << 5 | (uart.mcr & 0xc) << 4;
        return 0xb0;
    case SCRATCH:
        return uart.scratch;
    }
    update();
    return value;
}

static void send(uint8_t byte)
{
    if (!(uart.mcr & 0x10)) {
        putchar(byte);
        if (byte == '\n')
            fflush(stdout);
        byte = (uint8_t)toupper(byte);
    }
    if (uart.count < FIFO)
        uart.fifo[(uart.first + uart.count++) % FIFO] = byte;
    uart.is_empty = 1;
}

static void put(unsigned at, uint8_t value)
{
    switch (at) {
    case DATA:
        if (uart.lcr & 0x80)
            uart.divisor[0] = value;
        else
            send(value);
        break;
    case IER:
        if (uart.lcr & 0x80) {
            uart.divisor[1] = value;
        } else {
            uart.is_empty |= value & 2 && !(uart.ier & 2);
            uart.ier = value & 0xf;
        }
        break;
    case IIR_FCR:
        uart.fcr = value;
        uart.count = value & 2 ? 0 : uart.count;
        break;
    case LCR: uart.lcr = value; break;
    case MCR: uart.mcr = value & 0x1f; break;
    case SCRATCH: uart.scratch = value; break;
    }
    update();
}

static void on_read(void *arg, unsigned bar, uint64_t at, void *data, size_t len)
{
    (void)arg, (void)bar;
    for (size_t n = 0; n < len; n++)
        ((uint8_t *)data)[n] = get((unsigned)(at + n));
}

static void on_write(void *arg, unsigned bar, uint64_t at, const void *data, size_t len)
{
    (void)arg, (void)bar;
    for (size_t n = 0; n < len; n++)
        put((unsigned)(at + n), ((const uint8_t *)data)[n]);
}

static void on_reset(void *arg, int kind)
{
    (void)arg, (void)kind;
    uart.ier = uart.fcr = uart.lcr = uart.mcr = 0;
    uart.count = uart.is_empty = 0;
    update();
}

int main(void)
{
    static const struct viaduct_handlers handlers = {
        .read = on_read, .write = on_write, .reset = on_reset };
    uart.dev = viaduct_new("uart", 0x1234, 0x0550);
    /* Serial controller, 16550 compatible. */
    viaduct_set_class(uart.dev, 0x070002, 0);
    viaduct_set_bar(uart.dev, 0, VIADUCT_IO, 8);
    viaduct_set_intx(uart.dev);
    viaduct_set_handlers(uart.dev, &handlers, NULL);
    if (viaduct_connect(uart.dev, NULL) || viaduct_run(uart.dev)) {
        fprintf(stderr, "uart: %s\n", viaduct_error(uart.dev));
        return 1;
    }
    return 0;
}
