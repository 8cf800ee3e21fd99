/*
 * Drives the sorting accelerator of examples/sort from user space: sorter ROUNDS.
 *
 * Each round fills a page with 1024 words, has it sorted into another page, and compares that with
 * what the C library makes of it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = 1024 };
enum { ID = 0, SOURCE = 0x08, DESTINATION = 0x10, COMMAND = 0x18, STATUS = 0x1c, PENDING = 0x20 };

static volatile uint32_t *bar;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int file(const char *device, const char *name, int flags)
{
    char path[300];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%.200s/%s", device, name);
    return open(path, flags);
}

static void find(void)
{
    DIR *all = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        uint32_t id = 0;
        int config = file(entry->d_name, "config", O_RDWR);
        if (config < 0 || pread(config, &id, 4, 0) != 4 || id != 0x50471234)
            continue;
        /* Memory space and bus mastering. */
        uint16_t command = 6;
        int enable = file(entry->d_name, "enable", O_WRONLY);
        if (write(enable, "1", 1) != 1 || pwrite(config, &command, 2, 4) != 2)
            fail("enable the device");
        int resource = file(entry->d_name, "resource0", O_RDWR);
        bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
        if (bar == MAP_FAILED)
            fail("map the registers");
        return;
    }
    fprintf(stderr, "sorter: no device\n");
    exit(1);
}

static uint64_t bus_address(const void *page)
{
    uint64_t entry = 0;
    int map = open("/proc/self/pagemap", O_RDONLY);
    if (pread(map, &entry, 8, (uintptr_t)page / PAGE * 8) != 8 || !(entry >> 63))
        fail("find a page's address");
    close(map);
    return (entry & ((1ULL << 55) - 1)) * PAGE;
}

static void put(unsigned at, uint64_t address)
{
    bar[at / 4] = (uint32_t)address;
    bar[at / 4 + 1] = (uint32_t)(address >> 32);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int count, char **words)
{
    long rounds = count > 1 ? atol(words[1]) : 1;
    uint32_t *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    uint32_t *sorted = pages + WORDS, expected[WORDS];
    if (pages == MAP_FAILED)
        fail("lock memory");
    memset(pages, 1, 2 * PAGE);
    find();
    if (bar[ID] != 0x54524f53)
        fail("read the device's name");
    put(SOURCE, bus_address(pages));
    put(DESTINATION, bus_address(sorted));
    for (long round = 0; round < rounds; round++) {
        for (int n = 0; n < WORDS; n++)
            pages[n] = round == 0 ? (uint32_t)(WORDS - n) : (uint32_t)mrand48();
        memcpy(expected, pages, PAGE);
        qsort(expected, WORDS, 4, compare);
        memset(sorted, 0xee, PAGE);
        bar[COMMAND / 4] = 1;
        time_t end = time(NULL) + 20;
        while (bar[STATUS / 4] != 2)
            if (time(NULL) > end)
                fail("the device did not finish");
        if (bar[PENDING / 4] != 1)
            fail("no interrupt is pending");
        bar[PENDING / 4] = 1;
        if (memcmp(sorted, expected, PAGE)) {
            fprintf(stderr, "sorter: round %ld is wrong\n", round);
            return 1;
        }
    }
    printf("%ld pages sorted\n", rounds);
    return 0;
}
