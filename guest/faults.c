/*
 * Watches the DMA engine of examples/dma while something is done to it from outside. By VFIO and
 * MSI-X; the configuration space by sysfs, as VFIO shows a copy of its own.
 *
 *   faults KIND      KIND of interrupt: intx, msi or msix
 *
 * Each line that comes through /tmp/ask is a list of words; their answers go to /tmp/answer in one
 * line. Numbers are hexadecimal, times in milliseconds and decimal.
 *
 *   read AT              a register of 32 bits
 *   write AT VALUE
 *   timed AT             how long a read takes
 *   spread AT COUNT      the longest of some reads less the shortest
 *   config AT SIZE       bytes of the configuration space
 *   set AT SIZE VALUE    the same, written
 *   copy TIME SHIFT      a copy of 256 bytes; STATUS, the bytes that are right when it is done,
 *                        when the first interrupt came or -1, interrupts within TIME, the bytes
 *                        that are right then, how much COUNT went up
 *   interrupts TIME      how many came
 */
#define main dma_main
#include "guest-dma.c"
#undef main

enum { LEN = 256, START = 128 };

static int config_fd;

static long since(double begin) { return (long)((now() - begin) * 1000); }

static unsigned long config(unsigned at, unsigned size)
{
    unsigned long value = 0;
    if (pread(config_fd, &value, size, at) != (ssize_t)size)
        fail("read the configuration space");
    return value;
}

static void set(unsigned at, unsigned size, unsigned long value)
{
    if (pwrite(config_fd, &value, size, at) != (ssize_t)size)
        fail("write the configuration space");
}

/* Interrupts until `end`, or the first if `end` is that long away. */
static long interrupts(double end, int only_first)
{
    long count = 0;
    do {
        uint64_t some;
        double left = end - now();
        struct pollfd wait = { .fd = event, .events = POLLIN };
        if (poll(&wait, 1, left > 0 ? (int)(left * 1000) + 1 : 0) != 1)
            continue;
        if (read(event, &some, 8) != 8)
            fail("read the event");
        if (is_line)
            unmask();
        count += some;
    } while (now() < end && !(only_first && count));
    return count;
}

static int right(const uint8_t *source, const uint8_t *destination)
{
    int count = 0;
    for (int n = 0; n < LEN; n++)
        count += source[n] == destination[n];
    return count;
}

static void start_copy(void)
{
    static unsigned round;
    round++;
    for (int n = 0; n < LEN; n++)
        memory[n] = (uint8_t)((n * 7 + round * 13) % 0x50);
    memset(memory + PAGE, 0x5a, PAGE);
    put(SOURCE, (uint32_t)bus[0]);
    put(SOURCE + 4, (uint32_t)(bus[0] >> 32));
    put(DESTINATION, (uint32_t)(bus[1] + START));
    put(DESTINATION + 4, (uint32_t)(bus[1] >> 32));
    put(LENGTH, LEN);
    put(COMMAND, 1);
}

static void copied(char *out, size_t room, long time, unsigned shift)
{
    const uint8_t *destination = memory + PAGE + START + shift;
    uint32_t status, count = get(COUNT);
    start_copy();
    double begin = now();
    do
        status = get(STATUS);
    while (!(status & DONE) && since(begin) < 5000);
    int first = right(memory, destination);
    begin = now();
    double end = begin + time / 1000.0;
    /* Without a time, the first interrupt is waited for and no other. */
    long all = interrupts(time ? end : begin + 5, 1), came = all ? since(begin) : -1;
    put(PENDING, 1);
    if (time)
        all += interrupts(end, 0);
    snprintf(out, room, "%x %d %ld %ld %d %u ", status, first, came, all,
             right(memory, destination), get(COUNT) - count);
}

static void spread(char *out, size_t room, unsigned at, int count)
{
    double least = 1e9, most = 0;
    for (int n = 0; n < count; n++) {
        double begin = now();
        get(at);
        double took = now() - begin;
        least = took < least ? took : least;
        most = took > most ? took : most;
    }
    snprintf(out, room, "%ld ", (long)((most - least) * 1000));
}

/* Does what one word and those behind it say; the answer, or nothing, goes to `out`. */
static void obey(const char *word, char *out, size_t room)
{
#define NEXT(base) strtoul(strtok(NULL, " ") ?: "0", NULL, base)
    unsigned at = NEXT(16);
    if (!strcmp(word, "read"))
        snprintf(out, room, "%x ", get(at));
    else if (!strcmp(word, "write"))
        put(at, (uint32_t)NEXT(16));
    else if (!strcmp(word, "timed")) {
        double begin = now();
        get(at);
        snprintf(out, room, "%ld ", since(begin));
    } else if (!strcmp(word, "spread"))
        spread(out, room, at, (int)NEXT(16));
    else if (!strcmp(word, "config"))
        snprintf(out, room, "%lx ", config(at, (unsigned)NEXT(16)));
    else if (!strcmp(word, "set")) {
        unsigned size = (unsigned)NEXT(16);
        set(at, size, NEXT(16));
    } else
        fail(word);
}

static void answer(char *line, FILE *to)
{
    char out[1024] = "";
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        size_t len = strlen(out);
        if (!strcmp(word, "copy")) {
            long time = (long)NEXT(10);
            copied(out + len, sizeof out - len, time, (unsigned)NEXT(16));
        } else if (!strcmp(word, "interrupts"))
            snprintf(out + len, sizeof out - len, "%ld ",
                     interrupts(now() + NEXT(10) / 1000.0, 0));
        else
            obey(word, out + len, sizeof out - len);
    }
    fprintf(to, "%s\n", out);
    fflush(to);
}

int main(int count, char **words)
{
    char line[1024];
    if (count < 2)
        return 2;
    find();
    by_vfio(words[1]);
    config_fd = file("config", O_RDWR);
    /* Both ways each, so that nobody waits for the other side to come. */
    int ask = open("/tmp/ask", O_RDWR), to = open("/tmp/answer", O_RDWR);
    FILE *from = fdopen(ask, "r"), *out = fdopen(to, "w");
    if (config_fd < 0 || !from || !out)
        fail("open");
    errno = 0;
    if (get(0) != ID)
        fail("read the device's name");
    fprintf(out, "ready\n");
    fflush(out);
    while (fgets(line, sizeof line, from))
        answer(line, out);
    return 0;
}
