/*
 * What accesses of BAR 0 of a PCI device take of a driver, in nanoseconds:
 * accesses SLOT OFFSET MILLISECONDS, where SLOT is as in sysfs. Prints the median of a read, and
 * that of a write among 64 that follow each other.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000
#define BURST 64

static volatile uint8_t *bar;
static uint64_t took[MOST];

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int file(const char *slot, const char *name)
{
    char path[400];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", slot, name);
    int fd = open(path, O_RDWR);
    if (fd < 0)
        fd = open(path, O_WRONLY);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    return fd;
}

static int order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t median(int writes, unsigned at, uint64_t length)
{
    uint64_t end = now() + length;
    int count = 0;
    while (count < MOST && now() < end) {
        uint64_t begin = now();
        for (int n = 0; writes && n < BURST; n++)
            *(volatile uint32_t *)(bar + at) = n;
        if (!writes && *(volatile uint32_t *)bar == 0xffffffff)
            exit(1);
        took[count++] = now() - begin;
        /* The writes are taken before there are more. */
        if (writes && *(volatile uint32_t *)(bar + at) != BURST - 1)
            exit(2);
    }
    qsort(took, count, sizeof took[0], order);
    return took[count / 2] / (writes ? BURST : 1);
}

int main(int count, char **words)
{
    uint16_t command = 6;
    if (count != 4)
        return 3;
    uint64_t length = strtoull(words[3], NULL, 0) * 1000000;
    unsigned at = strtoul(words[2], NULL, 0);
    if (write(file(words[1], "enable"), "1", 1) < 0)
        perror("enable the device");
    if (pwrite(file(words[1], "config"), &command, 2, 4) != 2)
        perror("set the command register");
    bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file(words[1], "resource0"), 0);
    if (bar == MAP_FAILED) {
        perror("map the registers");
        return 4;
    }
    uint64_t read = median(0, at, length);
    printf("ns %llu %llu\n", (unsigned long long)read, (unsigned long long)median(1, at, length));
    return 0;
}
