/*
 * Reads and writes registers of BAR 0, or $BAR, of a PCI device: poke VENDOR:DEVICE COMMAND...
 *
 *   r OFFSET           prints 32 bits
 *   w OFFSET VALUE     writes 32 bits
 *   u OFFSET VALUE     reads until it is that value, 10 s at most
 *   p                  takes a page of memory for the device; its address is A for the others
 *   c FIRST ADD        the page must hold bytes that count up from FIRST + ADD
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

static char folder[300];
static uint8_t *page;
static uint64_t address;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int file(const char *name, int flags)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return open(path, flags);
}

static unsigned id(const char *name)
{
    char text[16] = "";
    int fd = file(name, O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
        return 0;
    close(fd);
    return strtoul(text, NULL, 16);
}

static void find(const char *wanted)
{
    DIR *all = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    char found[32];
    while (all && (entry = readdir(all))) {
        snprintf(folder, sizeof folder, "/sys/bus/pci/devices/%.255s", entry->d_name);
        snprintf(found, sizeof found, "%04x:%04x", id("vendor"), id("device"));
        if (!strcmp(found, wanted))
            return;
    }
    fprintf(stderr, "no device %s\n", wanted);
    exit(1);
}

static uint32_t value(const char *word)
{
    if (!strcmp(word, "A"))
        return (uint32_t)address;
    if (!strcmp(word, "AH"))
        return (uint32_t)(address >> 32);
    return strtoul(word, NULL, 0);
}

static void take_page(void)
{
    uint64_t entry;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (page == MAP_FAILED)
        fail("lock a page");
    memset(page, 0x5a, 4096);
    if (pread(fd, &entry, 8, (uintptr_t)page / 4096 * 8) != 8 || !(entry >> 63))
        fail("find the page's address");
    address = (entry & ((1ULL << 55) - 1)) * 4096;
}

int main(int count, char **words)
{
    uint16_t command = 6;
    int n = 2;
    find(words[1]);
    int fd = file("enable", O_WRONLY);
    if (fd < 0 || write(fd, "1", 1) != 1)
        fail("enable the device");
    fd = file("config", O_RDWR);
    if (fd < 0 || pwrite(fd, &command, 2, 4) != 2)
        fail("set the command register");
    const char *number = getenv("BAR");
    char resource[16];
    snprintf(resource, sizeof resource, "resource%.1s", number ? number : "0");
    fd = file(resource, O_RDWR);
    volatile uint8_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bar == MAP_FAILED)
        fail("map the registers");
    while (n < count) {
        char what = words[n++][0];
        volatile uint32_t *at = (volatile uint32_t *)(bar + (n < count ? value(words[n]) : 0));
        if (what == 'r' && n < count) {
            printf("%#x\n", *at);
        } else if (what == 'w' && n + 1 < count) {
            *at = value(words[++n]);
        } else if (what == 'u' && n + 1 < count) {
            uint32_t wanted = value(words[++n]), found;
            time_t end = time(NULL) + 10;
            while ((found = *at) != wanted)
                if (time(NULL) > end) {
                    fprintf(stderr, "it is %#x and not %#x\n", found, wanted);
                    return 1;
                }
        } else if (what == 'c' && n + 1 < count) {
            unsigned first = value(words[n]) + value(words[n + 1]);
            for (unsigned at_byte = 0; at_byte < 4096; at_byte++)
                if (page[at_byte] != (uint8_t)(first + at_byte)) {
                    fprintf(stderr, "byte %u is %#x\n", at_byte, page[at_byte]);
                    return 1;
                }
            n++;
        } else if (what == 'p') {
            take_page();
            continue;
        } else {
            fprintf(stderr, "poke: what is '%c'?\n", what);
            return 2;
        }
        n++;
    }
    return 0;
}
