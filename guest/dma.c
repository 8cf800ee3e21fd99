/*
 * Drives the DMA engine of examples/dma from user space, whatever it is written in.
 *
 *   dma sysfs COPIES              registers by sysfs, addresses by /proc/self/pagemap
 *   dma vfio COPIES intx|msi|msix registers, addresses and interrupts by VFIO
 *   dma faults COPIES             as sysfs; the device may vanish and come back meanwhile
 *
 * Of several such devices the first, or as many further on as CARD in the environment says.
 *
 * Every copy is of another length, source and destination; every byte of the destination's page is
 * checked, those around the copy too. Ends at the first wrong one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, ID = 0x414d4456, DONE = 2, FAILED = 4 };
enum { SOURCE = 0x08, DESTINATION = 0x10, LENGTH = 0x18, COMMAND = 0x1c, STATUS = 0x20,
       PENDING = 0x24, COUNT = 0x28 };

static char address[64];        /* of the device, as 0000:01:00.0 */
static volatile uint8_t *bar;
static uint8_t *memory;
static uint64_t bus[PAGES];     /* the pages' addresses for the device */
static int event = -1, is_line;
static int device_fd = -1;
static long vanished;

static void fail(const char *what)
{
    fprintf(stderr, "dma: %s: %s\n", what, errno ? strerror(errno) : "wrong");
    exit(1);
}

static uint32_t get(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void put(unsigned at, uint32_t value) { *(volatile uint32_t *)(bar + at) = value; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int file(const char *name, int flags)
{
    char path[256];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", address, name);
    return open(path, flags);
}

/* The first such device, or as many further on as CARD in the environment says. */
static void find(void)
{
    int skip = atoi(getenv("CARD") ?: "0");
    DIR *all = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        char text[16] = "";
        snprintf(address, sizeof address, "%.60s", entry->d_name);
        int fd = file("vendor", O_RDONLY);
        if (fd < 0 || read(fd, text, 6) != 6 || strcmp(text, "0x1234"))
            continue;
        fd = file("device", O_RDONLY);
        if (fd >= 0 && read(fd, text, 6) == 6 && !strcmp(text, "0x0da7") && !skip--)
            return;
    }
    errno = ENODEV;
    fail("find the device");
}

static void by_sysfs(void)
{
    int fd = file("enable", O_WRONLY);
    if (fd < 0 || write(fd, "1", 1) != 1)
        fail("enable the device");
    /* Memory space and bus mastering. */
    uint16_t command = 6;
    fd = file("config", O_RDWR);
    if (fd < 0 || pwrite(fd, &command, 2, 4) != 2)
        fail("set the command register");
    fd = file("resource0", O_RDWR);
    bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bar == MAP_FAILED)
        fail("map the registers");
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        fail("lock memory");
    fd = open("/proc/self/pagemap", O_RDONLY);
    for (int n = 0; n < PAGES; n++) {
        uint64_t entry;
        memory[n * PAGE] = 1;
        if (pread(fd, &entry, 8, ((uintptr_t)memory / PAGE + n) * 8) != 8 || !(entry >> 63))
            fail("find a page's address");
        bus[n] = (entry & ((1ULL << 55) - 1)) * PAGE;
    }
}

static void by_vfio(const char *kind)
{
    char link[256], group[300];
    snprintf(link, sizeof link, "/sys/bus/pci/devices/%s/iommu_group", address);
    ssize_t len = readlink(link, group, sizeof group - 1);
    if (len < 0)
        fail("find the IOMMU group");
    group[len] = 0;
    snprintf(link, sizeof link, "/dev/vfio/%s", strrchr(group, '/') + 1);
    int container = open("/dev/vfio/vfio", O_RDWR), fd = open(link, O_RDWR);
    if (container < 0 || fd < 0)
        fail("open the group");
    if (ioctl(fd, VFIO_GROUP_SET_CONTAINER, &container) ||
        ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
        fail("set the IOMMU up");
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < PAGES; n++) {
        /* Scattered, so that an address can't be right by luck. */
        bus[n] = 0x10000000 + (uint64_t)((n * 7) % PAGES) * 0x11000;
        struct vfio_iommu_type1_dma_map map = {
            .argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            .vaddr = (uintptr_t)memory + n * PAGE, .iova = bus[n], .size = PAGE };
        if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
            fail("map memory for the device");
    }
    device_fd = ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, address);
    struct vfio_region_info region = { .argsz = sizeof region };
    if (device_fd < 0 || ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &region))
        fail("open the device");
    bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device_fd, region.offset);
    if (bar == MAP_FAILED)
        fail("map the registers");
    struct vfio_region_info config = { .argsz = sizeof config,
                                       .index = VFIO_PCI_CONFIG_REGION_INDEX };
    uint16_t command = 6;
    if (ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &config) ||
        pwrite(device_fd, &command, 2, config.offset + 4) != 2)
        fail("set the command register");
    is_line = !strcmp(kind, "intx");
    event = eventfd(0, 0);
    char bytes[sizeof(struct vfio_irq_set) + 4];
    struct vfio_irq_set *set = (void *)bytes;
    *set = (struct vfio_irq_set){
        .argsz = sizeof bytes, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = is_line ? VFIO_PCI_INTX_IRQ_INDEX
               : !strcmp(kind, "msi") ? VFIO_PCI_MSI_IRQ_INDEX : VFIO_PCI_MSIX_IRQ_INDEX,
        .count = 1 };
    memcpy(set->data, &event, 4);
    if (ioctl(device_fd, VFIO_DEVICE_SET_IRQS, set))
        fail("connect the interrupt");
}

static void unmask(void)
{
    struct vfio_irq_set set = { .argsz = sizeof set, .count = 1, .index = VFIO_PCI_INTX_IRQ_INDEX,
                                .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK };
    if (ioctl(device_fd, VFIO_DEVICE_SET_IRQS, &set))
        fail("unmask the line");
}

/* Waits for the end of a copy; 0 if the device is gone or was reset meanwhile. */
static int finished(int may_vanish)
{
    double end = now() + 20;
    if (event >= 0) {
        uint64_t count;
        struct pollfd wait = { .fd = event, .events = POLLIN };
        if (poll(&wait, 1, 20000) != 1 || read(event, &count, 8) != 8)
            fail("no interrupt");
        if (get(PENDING) != 1)
            fail("an interrupt without a reason");
        put(PENDING, 1);
        if (get(PENDING) != 0)
            fail("the interrupt stays pending");
        if (is_line)
            unmask();
    }
    while (now() < end) {
        uint32_t status = get(STATUS);
        if (may_vanish && (status == 0xffffffff || status == 0))
            return 0;
        if (status & FAILED)
            fail("the device says that a copy failed");
        if (status & DONE)
            return 1;
    }
    fail("the device did not finish");
    return 0;
}

/* After the device vanished: waits until it is there again. */
static void wait_for_device(void)
{
    double end = now() + 20;
    vanished++;
    while (get(0) != ID)
        if (now() > end)
            fail("the device did not come back");
}

static int copy(long round, int may_vanish)
{
    unsigned from = round % (PAGES / 2), to = PAGES / 2 + round * 5 % (PAGES / 2);
    unsigned len = 1 + round * 37 % 4000, skip = round * 11 % (PAGE - 4000);
    uint8_t *source = memory + from * PAGE, *destination = memory + to * PAGE;
    for (int n = 0; n < PAGE; n++)
        source[n] = (uint8_t)(n * 7 + round * 13 + (n >> 8));
    memset(destination, 0x5a, PAGE);
    put(SOURCE, (uint32_t)(bus[from] + skip));
    put(SOURCE + 4, (uint32_t)((bus[from] + skip) >> 32));
    put(DESTINATION, (uint32_t)(bus[to] + 96 - skip));
    put(DESTINATION + 4, (uint32_t)((bus[to] + 96 - skip) >> 32));
    put(LENGTH, len);
    /* Nothing is begun with half of the addresses, whatever has happened since. */
    if (may_vanish && (get(LENGTH) != len || get(SOURCE) != (uint32_t)(bus[from] + skip) ||
                       get(DESTINATION) != (uint32_t)(bus[to] + 96 - skip)))
        return 0;
    put(COMMAND, 1);
    int is_done = finished(may_vanish);
    for (unsigned n = 0; n < PAGE; n++) {
        unsigned place = n - (96 - skip);
        uint8_t copied = source[skip + (place < len ? place : 0)];
        int inside = n >= 96 - skip && place < len;
        if (inside ? (destination[n] != copied && (is_done || destination[n] != 0x5a))
                   : destination[n] != 0x5a) {
            fprintf(stderr, "dma: copy %ld, byte %u is %#x\n", round, n, destination[n]);
            exit(1);
        }
    }
    return is_done;
}

static void speed(void)
{
    double best = 1, begin, took;
    for (int n = 0; n < 2000; n++) {
        begin = now();
        get(0);
        took = now() - begin;
        best = took < best ? took : best;
    }
    begin = now();
    for (int n = 0; n < 2000; n++)
        get(0);
    took = (now() - begin) / 2000;
    printf("register read: %.1f us at best, %.1f us on average\n", best * 1e6, took * 1e6);
}

int main(int count, char **words)
{
    if (count < 3 || (!strcmp(words[1], "vfio") && count < 4)) {
        fprintf(stderr, "usage: dma sysfs|faults COPIES, dma vfio COPIES intx|msi|msix\n");
        return 2;
    }
    int may_vanish = !strcmp(words[1], "faults");
    long copies = atol(words[2]), done = 0;
    find();
    if (!strcmp(words[1], "vfio"))
        by_vfio(words[3]);
    else
        by_sysfs();
    errno = 0;
    if (get(0) != ID)
        fail("read the device's name");
    double begin = now();
    for (long round = 0; done < copies; round++) {
        if (copy(round, may_vanish))
            done++;
        else
            wait_for_device();
    }
    if (!may_vanish && get(COUNT) != (uint32_t)copies)
        fail("the device counts otherwise");
    printf("%ld copies, %.0f a second, vanished %ld times\n", done, done / (now() - begin),
           vanished);
    if (device_fd >= 0) {
        if (ioctl(device_fd, VFIO_DEVICE_RESET) || get(COUNT) != 0)
            fail("function level reset");
        printf("function level reset: done\n");
    } else if (!may_vanish)
        speed();
    return 0;
}
