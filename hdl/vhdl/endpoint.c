/*
 * The other side of package pcie: what its foreign functions do, over libviaduct. The simulator
 * owns the main loop and calls viaduct_endpoint_poll() at each rising edge, which waits there while
 * the design is quiet.
 *
 * The environment:
 *
 *   VIADUCT_REQ_STROBE=1   requests last one clock, for designs that know no req_ack
 *   VIADUCT_QUIET=N        the clock stands still after N clocks without anything (10000); 0: never
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "card.h"

/* How VHDL has it: std_ulogic's place in 'U', 'X', '0', '1', 'Z', 'W', 'L', 'H', '-'. */
enum { LOW = 2, HIGH = 3, WEAK_HIGH = 7 };
/* Answers of viaduct_endpoint_poll(). */
enum { NOTHING, READ, WRITE, OVER };
enum {
    PAYLOAD = 128,
    /* What libviaduct has on its way at a time. */
    MAX_WRITES = 64,
    /* Clocks between looks at the time while a read waits. */
    CLOCKS_PER_LOOK = 1024,
    /* How long a design that does not answer a read is waited for: a bit less than the port does,
       so that a late answer is not taken for that of the next read. */
    ANSWER_MS = 90,
    /* Longest standstill of the clock: a design that waits for something else gets a clock then. */
    STANDSTILL_MS = 20,
};

/* A driver's access. One of more than 8 bytes goes to the design in parts of 8. */
struct access {
    struct access *next;
    viaduct_answer *answer; /* of a read */
    unsigned bar;
    uint64_t addr;
    size_t len, done;
    uint8_t data[];
};

/* A write of host memory that is on its way. */
struct transfer {
    int is_busy;
    uint8_t data[PAYLOAD];
};

static struct {
    viaduct_device *dev;
    struct access *first, **end;
    int has_read;       /* the design has the first access, a read, and owes an answer */
    uint64_t read_ends; /* when it is given up */
    int is_over;
    int resets, resets_seen;
    unsigned long quiet, quiet_limit, clocks;
    struct transfer transfers[MAX_WRITES];
} glue;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void log_line(int is_error, const char *what, uint64_t at)
{
    char line[128];
    snprintf(line, sizeof line, what, (unsigned long long)at);
    viaduct_log(glue.dev, is_error, line);
}

/* ---- bits ---- */

static uint64_t value_of(const uint8_t *bits, unsigned count)
{
    uint64_t value = 0;
    for (unsigned n = 0; n < count; n++)
        value = value << 1 | (bits[n] == HIGH || bits[n] == WEAK_HIGH);
    return value;
}

static void put_value(uint8_t *bits, unsigned count, uint64_t value)
{
    for (unsigned n = count; n-- > 0; value >>= 1)
        bits[n] = value & 1 ? HIGH : LOW;
}

/* ---- the driver's side ---- */

static struct access *append(unsigned bar, uint64_t addr, size_t len)
{
    struct access *access = calloc(1, sizeof *access + len);
    if (!access) {
        fputs("endpoint: no memory\n", stderr);
        exit(1);
    }
    access->bar = bar;
    access->addr = addr;
    access->len = len;
    *glue.end = access;
    glue.end = &access->next;
    glue.quiet = 0;
    return access;
}

static void drop_first(void)
{
    struct access *first = glue.first;
    glue.first = first->next;
    if (!glue.first)
        glue.end = &glue.first;
    glue.has_read = 0;
    free(first);
}

static void on_read(void *context, unsigned bar, uint64_t offset, size_t len,
                    viaduct_answer *answer)
{
    (void)context;
    append(bar, offset, len)->answer = answer;
}

static void on_write(void *context, unsigned bar, uint64_t offset, const void *data, size_t len)
{
    (void)context;
    memcpy(append(bar, offset, len)->data, data, len);
}

static void on_reset(void *context, int kind)
{
    (void)context;
    (void)kind;
    while (glue.first) {
        if (glue.first->answer)
            viaduct_answer_read(glue.first->answer, NULL, 0);
        drop_first();
    }
    /* None of them is reported any more. */
    memset(glue.transfers, 0, sizeof glue.transfers);
    glue.resets++;
    glue.quiet = 0;
}

/* ---- the beginning ---- */

static unsigned long setting(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoul(text, NULL, 10) : otherwise;
}

/* What a design reports is seen when it is reported. Too late once something was. */
__attribute__((constructor)) static void by_lines(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
}

static void begin(void)
{
    static const struct viaduct_handlers handlers = {
        .read_later = on_read, .write = on_write, .reset = on_reset };
    glue.end = &glue.first;
    glue.quiet_limit = setting("VIADUCT_QUIET", 10000);
    glue.dev = make_card();
    int error = viaduct_set_handlers(glue.dev, &handlers, NULL);
    if (error || viaduct_connect(glue.dev, NULL)) {
        fprintf(stderr, "endpoint: %s\n", viaduct_error(glue.dev));
        exit(1);
    }
}

/* ---- what VHDL calls ---- */

static void look(int timeout_ms)
{
    if (viaduct_process(glue.dev, timeout_ms))
        glue.is_over = 1;
}

static void give_up(void)
{
    log_line(1, "the design does not answer the read at %#llx", glue.first->addr);
    viaduct_answer_read(glue.first->answer, NULL, 0);
    drop_first();
}

int32_t viaduct_endpoint_poll(int32_t is_held)
{
    struct access *first = glue.first;
    if (!glue.dev)
        begin();
    glue.clocks++;
    if (glue.has_read || is_held)
        glue.quiet = 0;
    if (!first || glue.has_read) {
        int is_quiet = glue.quiet_limit && glue.quiet++ >= glue.quiet_limit;
        look(is_quiet ? STANDSTILL_MS : 0);
        if (glue.has_read && glue.clocks % CLOCKS_PER_LOOK == 0 && now_ms() >= glue.read_ends)
            give_up();
        first = glue.first;
    }
    if (glue.is_over)
        return OVER;
    /* The design is reset before the next edge, and would lose what it was given at this one. */
    if (glue.resets_seen != glue.resets) {
        glue.resets_seen = glue.resets;
        return NOTHING;
    }
    if (!first || glue.has_read || is_held)
        return NOTHING;
    if (!first->answer)
        return WRITE;
    glue.has_read = 1;
    glue.read_ends = now_ms() + ANSWER_MS;
    return READ;
}

void viaduct_endpoint_request(uint8_t *bar, uint8_t *addr, uint8_t *data)
{
    struct access *first = glue.first;
    size_t len = first->len - first->done;
    uint64_t value = 0;
    if (len > sizeof value)
        len = sizeof value;
    memcpy(&value, first->data + first->done, len);
    put_value(bar, 3, first->bar);
    put_value(addr, 64, first->addr + first->done);
    put_value(data, 64, value);
    if (glue.has_read)
        return;
    first->done += len;
    if (first->done >= first->len)
        drop_first();
}

void viaduct_endpoint_reply(const uint8_t *bits)
{
    struct access *first = glue.first;
    uint64_t value = value_of(bits, 64);
    glue.quiet = 0;
    if (!glue.has_read) {
        viaduct_log(glue.dev, 1, "the design answers a read that there is not");
        return;
    }
    size_t len = first->len - first->done;
    if (len > sizeof value)
        len = sizeof value;
    memcpy(first->data + first->done, &value, len);
    first->done += len;
    glue.has_read = 0;
    if (first->done >= first->len) {
        viaduct_answer_read(first->answer, first->data, first->len);
        drop_first();
    }
}

static void written(void *arg, int status)
{
    ((struct transfer *)arg)->is_busy = 0;
    if (status)
        viaduct_log(glue.dev, 1, viaduct_error(glue.dev));
}

static struct transfer *free_transfer(void)
{
    for (;;) {
        for (unsigned n = 0; n < MAX_WRITES; n++)
            if (!glue.transfers[n].is_busy)
                return &glue.transfers[n];
        if (glue.is_over)
            return NULL;
        look(STANDSTILL_MS);
    }
}

void viaduct_endpoint_write(const uint8_t *addr, const uint8_t *data, const uint8_t *size)
{
    uint64_t len = value_of(size, 16), at = value_of(addr, 64);
    struct transfer *transfer = free_transfer();
    glue.quiet = 0;
    if (!transfer)
        return;
    if (len > PAYLOAD) {
        log_line(1, "a write of %llu bytes is longer than 128 bytes", len);
        len = PAYLOAD;
    }
    for (unsigned n = 0; n < len; n++)
        transfer->data[n] = (uint8_t)value_of(data + 8 * (PAYLOAD - 1 - n), 8);
    transfer->is_busy = 1;
    int error = len ? viaduct_host_write_start(glue.dev, at, transfer->data, len, written, transfer)
                    : 0;
    if (error || !len)
        transfer->is_busy = 0;
    if (error)
        log_line(1, "the write of host memory at %#llx failed: is bus mastering on?", at);
}

void viaduct_endpoint_msi(void)
{
    glue.quiet = 0;
    viaduct_msi(glue.dev, 0);
}

int32_t viaduct_endpoint_strobe(void)
{
    return setting("VIADUCT_REQ_STROBE", 0) == 1;
}

int32_t viaduct_endpoint_resets(void)
{
    return glue.resets;
}
