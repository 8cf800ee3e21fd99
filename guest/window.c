/*
 * Uses the memory of examples/window through the machine's own loads and stores.
 *
 *   window fill     writes it, has the card invert it, reads it
 *   window again    finds it as `fill` has left it, has it inverted back
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

enum { SIZE = 1 << 20, WORDS = SIZE / 8 };

static void *map(const char *resource, size_t size)
{
    DIR *all = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    char path[400], text[16];
    while (all && (entry = readdir(all))) {
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/device", entry->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, text, 6) != 6 || memcmp(text, "0x0fb0", 6))
            continue;
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/enable", entry->d_name);
        fd = open(path, O_WRONLY);
        if (fd < 0 || (write(fd, "1", 1) != 1))
            break;
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", entry->d_name, resource);
        fd = open(path, O_RDWR);
        void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED)
            return at;
    }
    perror("map the card");
    exit(1);
}

static uint32_t crc(const uint64_t *words)
{
    uint32_t sum = ~0u;
    for (int n = 0; n < WORDS; n++)
        for (int byte = 0; byte < 8; byte++) {
            sum ^= (uint8_t)(words[n] >> 8 * byte);
            for (int bit = 0; bit < 8; bit++)
                sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
        }
    return ~sum;
}

static void expect(uint32_t is, uint32_t wanted, const char *what)
{
    if (is != wanted) {
        fprintf(stderr, "window: %s is %#x and not %#x\n", what, is, wanted);
        exit(1);
    }
}

int main(int count, char **words)
{
    volatile uint32_t *registers = map("resource0", 4096);
    volatile uint64_t *below = map("resource2", 2 * SIZE), *memory = below + WORDS;
    static uint64_t pattern[WORDS];
    int again = count > 1 && !strcmp(words[1], "again");
    for (int n = 0; n < WORDS; n++)
        pattern[n] = (n + 1) * 0x9e3779b97f4a7c15;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int n = 0; n < WORDS && !again; n++)
        memory[n] = pattern[n];
    clock_gettime(CLOCK_MONOTONIC, &end);
    for (int n = 0; n < WORDS && again; n++)
        pattern[n] = ~pattern[n];
    registers[0] = 1;
    expect(registers[0], crc(pattern), "the sum");
    for (int n = 0; n < WORDS; n++)
        if (memory[n] != ~pattern[n]) {
            fprintf(stderr, "window: word %d is wrong\n", n);
            return 1;
        }
    expect(registers[1], 0, "the number of accesses by message");
    (void)*(volatile uint32_t *)below;
    expect(registers[1], 1, "their number after one below the memory");
    double took = end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9;
    printf("%.0f ns for a store\n", took / WORDS * 1e9);
    return 0;
}
