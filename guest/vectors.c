/*
 * The DMA engine with four MSI vectors: copy n interrupts by vector n mod 4, and by no other. The
 * machine's IOMMU remaps interrupts: without that, Linux gives a device one vector of MSI.
 */
#define main dma_main
#include "guest-dma.c"
#undef main

enum { VECTORS = 4, ROUNDS = 12 };

static void set_irqs(unsigned flags, unsigned count, const int *events)
{
    char bytes[sizeof(struct vfio_irq_set) + sizeof(int) * VECTORS];
    struct vfio_irq_set *set = (void *)bytes;
    *set = (struct vfio_irq_set){ .argsz = sizeof *set + sizeof(int) * count,
                                  .flags = flags | VFIO_IRQ_SET_ACTION_TRIGGER,
                                  .index = VFIO_PCI_MSI_IRQ_INDEX, .count = count };
    memcpy(set->data, events, sizeof(int) * count);
    if (ioctl(device_fd, VFIO_DEVICE_SET_IRQS, set))
        fail("connect the vectors");
}

int main(void)
{
    int events[VECTORS];
    find();
    by_vfio("msi");
    set_irqs(VFIO_IRQ_SET_DATA_NONE, 0, events);
    for (int n = 0; n < VECTORS; n++)
        events[n] = eventfd(0, EFD_NONBLOCK);
    set_irqs(VFIO_IRQ_SET_DATA_EVENTFD, VECTORS, events);
    for (int round = 1; round <= ROUNDS; round++) {
        int wanted = round % VECTORS;
        uint64_t count;
        struct pollfd wait = { .fd = events[wanted], .events = POLLIN };
        put(SOURCE, (uint32_t)bus[0]);
        put(DESTINATION, (uint32_t)bus[1]);
        put(LENGTH, 64);
        put(COMMAND, 1);
        if (poll(&wait, 1, 20000) != 1 || read(events[wanted], &count, 8) != 8 || count != 1)
            fail("the vector's own interrupt");
        for (int n = 0; n < VECTORS; n++)
            if (n != wanted && read(events[n], &count, 8) == 8)
                fail("another vector's interrupt");
    }
    printf("%d interrupts by %d vectors\n", ROUNDS, VECTORS);
    return 0;
}
