/*
 * VPCIe's interface on libviaduct: a program that was written for VPCIe compiles without a change,
 * with this folder before VPCIe's own on the include path and -lviaduct, and runs on stock QEMU:
 *
 *     viaduct pcie --socket /tmp/dev.sock --model "./device 127.0.0.1 42425 127.0.0.1 42424"
 *
 * What is different: the addresses and ports given to pcie_init_net() are ignored, the port is
 * found by VIADUCT_PORT, and connecting happens in pcie_loop(). The configuration space is made by
 * libviaduct; ids, class, revision and subsystem ids are taken from dev->config. Accesses of 1, 2,
 * 4 and 8 bytes reach the handlers, not only those of 4. MSI is off until a driver enables it.
 * Functions return 0, or -1. What handles the TCP connection itself (pcie_net_init, pcie_net_fini,
 * pcie_net_loop, pcie_net_send_buf, pcie_net_recv_buf and what is made of them) is not here.
 */
#ifndef PCIE_H_INCLUDED
#define PCIE_H_INCLUDED

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>
#include <viaduct.h>

#if defined(__has_include)
#if __has_include(<pci/header.h>)
#include <pci/header.h>
#endif
#endif
#ifndef PCI_VENDOR_ID
#define PCI_VENDOR_ID 0x00
#endif
#ifndef PCI_DEVICE_ID
#define PCI_DEVICE_ID 0x02
#endif

#define PCIE_BAR_COUNT 6

enum {
    PCIE_NET_OP_READ_CONFIG, PCIE_NET_OP_WRITE_CONFIG, PCIE_NET_OP_READ_MEM,
    PCIE_NET_OP_WRITE_MEM, PCIE_NET_OP_READ_IO, PCIE_NET_OP_WRITE_IO, PCIE_NET_OP_INT,
    PCIE_NET_OP_MSI, PCIE_NET_OP_MSIX
};

typedef struct pcie_net_header {
    uint16_t size;
} __attribute__((packed)) pcie_net_header_t;

/* A message of the device's: a write of host memory, or an interrupt. */
typedef struct pcie_net_msg {
    pcie_net_header_t header;
    uint8_t op;
    uint8_t bar;
    uint8_t width;
    uint64_t addr;
    uint16_t size;
    uint8_t data[1];
} __attribute__((packed)) pcie_net_msg_t;

#define PCIE_NET_MSG_MAX_SIZE (offsetof(pcie_net_msg_t, data) + 0x1000)

typedef void (*pcie_net_taskfn_t)(void *);
typedef int (*pcie_net_evfn_t)(unsigned int, void *);
typedef void (*pcie_readfn_t)(uint64_t, void *, size_t, void *);
typedef void (*pcie_writefn_t)(uint64_t, const void *, size_t, void *);

typedef struct pcie_net {
    viaduct_device *device;
    int task;
    pcie_net_taskfn_t task_fn;
    void *task_data;
    pcie_net_evfn_t ev_fn;
    void *ev_data;
} pcie_net_t;

typedef struct pcie_dev {
    pcie_net_t net;
    uint64_t bar_size[PCIE_BAR_COUNT];
    pcie_readfn_t bar_readfn[PCIE_BAR_COUNT];
    pcie_writefn_t bar_writefn[PCIE_BAR_COUNT];
    void *bar_data[PCIE_BAR_COUNT];
    uint8_t config[0x1000];
} pcie_dev_t;

#ifndef container_of
#define container_of(pointer, type, member) \
    ((type *)((char *)(pointer) - offsetof(type, member)))
#endif

/* ---- what libviaduct calls ---- */

static inline void pcie_on_read_(void *arg, unsigned bar, uint64_t offset, void *data, size_t len)
{
    pcie_dev_t *dev = (pcie_dev_t *)arg;
    /* VPCIe's handlers have eight bytes of zeros to write to, whatever was asked. */
    uint8_t bytes[8] = { 0 };
    if (bar >= PCIE_BAR_COUNT || !dev->bar_readfn[bar]) {
        memset(data, 0xff, len);
    } else if (len <= sizeof bytes) {
        dev->bar_readfn[bar](offset, bytes, len, dev->bar_data[bar]);
        memcpy(data, bytes, len);
    } else {
        dev->bar_readfn[bar](offset, data, len, dev->bar_data[bar]);
    }
}

static inline void pcie_on_write_(void *arg, unsigned bar, uint64_t offset, const void *data,
                                  size_t len)
{
    pcie_dev_t *dev = (pcie_dev_t *)arg;
    if (bar < PCIE_BAR_COUNT && dev->bar_writefn[bar])
        dev->bar_writefn[bar](offset, data, len, dev->bar_data[bar]);
}

static inline void pcie_on_config_(void *arg, unsigned offset, size_t len)
{
    pcie_dev_t *dev = (pcie_dev_t *)arg;
    if (offset + len <= sizeof dev->config)
        viaduct_get_config(dev->net.device, offset, dev->config + offset, len);
}

static inline void pcie_on_task_(void *arg)
{
    pcie_net_t *net = (pcie_net_t *)arg;
    pcie_net_taskfn_t fn = net->task_fn;
    net->task = 0;
    if (fn)
        fn(net->task_data);
}

static inline void pcie_on_event_(void *arg, int fd)
{
    pcie_net_t *net = (pcie_net_t *)arg;
    unsigned int keys[32];
    ssize_t len = read(fd, keys, sizeof keys);
    size_t n;
    if (len <= 0) {
        viaduct_stop(net->device);
        return;
    }
    for (n = 0; n < (size_t)len / sizeof keys[0]; n++)
        if (net->ev_fn && net->ev_fn(keys[n], net->ev_data)) {
            viaduct_stop(net->device);
            return;
        }
}

/* ---- initialization, main loop ---- */

static inline int pcie_init_net(pcie_dev_t *dev, const char *laddr, const char *lport,
                                const char *raddr, const char *rport)
{
    /* Data acquisition and signal processing of no known kind, as VPCIe has it. */
    static const uint8_t code[3] = { 0x00, 0x80, 0x11 };
    (void)laddr;
    (void)lport;
    (void)raddr;
    (void)rport;
    memset(dev, 0, sizeof *dev);
    memcpy(dev->config + 0x09, code, sizeof code);
    dev->net.device = viaduct_new("vpcie", 0xffff, 0xffff);
    return dev->net.device ? 0 : -1;
}

static inline int pcie_fini(pcie_dev_t *dev)
{
    viaduct_free(dev->net.device);
    dev->net.device = NULL;
    return 0;
}

static inline int pcie_loop(pcie_dev_t *dev)
{
    static const struct viaduct_handlers handlers = {
        pcie_on_read_, NULL, pcie_on_write_, NULL, pcie_on_config_, NULL };
    viaduct_device *device = dev->net.device;
    int error = viaduct_set_msi(device, 1);
    unsigned bar;
    for (bar = 0; bar < PCIE_BAR_COUNT; bar++)
        if (dev->bar_size[bar])
            error |= viaduct_set_bar(device, bar, VIADUCT_MEMORY32,
                                     dev->bar_size[bar] < 16 ? 16 : dev->bar_size[bar]);
    error |= viaduct_put_config(device, 0x00, dev->config, 4);
    error |= viaduct_put_config(device, 0x08, dev->config + 0x08, 4);
    error |= viaduct_put_config(device, 0x2c, dev->config + 0x2c, 4);
    error |= viaduct_set_handlers(device, &handlers, dev);
    if (error || viaduct_connect(device, NULL) || viaduct_run(device)) {
        fprintf(stderr, "pcie_loop: %s\n", viaduct_error(device));
        return -1;
    }
    return 0;
}

/* ---- configuration space ---- */

static inline int pcie_check_config(pcie_dev_t *dev, uint64_t addr, size_t size)
{
    if ((addr & (size - 1)) || addr > sizeof dev->config || size > sizeof dev->config - addr)
        return -1;
    return 0;
}

static inline int pcie_write_config_safe(pcie_dev_t *dev, uint64_t addr, const void *data,
                                         size_t size)
{
    memcpy(dev->config + addr, data, size);
    /* Once connected the port has to know; before, it is too early and does no harm. */
    if (viaduct_fd(dev->net.device) >= 0)
        viaduct_put_config(dev->net.device, (unsigned)addr, data, size);
    return 0;
}

static inline int pcie_read_config_safe(pcie_dev_t *dev, uint64_t addr, void *data, size_t size)
{
    memcpy(data, dev->config + addr, size);
    return 0;
}

static inline int pcie_write_config(pcie_dev_t *dev, uint64_t addr, const void *data, size_t size)
{
    return pcie_check_config(dev, addr, size) ? -1 : pcie_write_config_safe(dev, addr, data, size);
}

static inline int pcie_read_config(pcie_dev_t *dev, uint64_t addr, void *data, size_t size)
{
    return pcie_check_config(dev, addr, size) ? -1 : pcie_read_config_safe(dev, addr, data, size);
}

#define PCIE_ACCESSORS_(name, type) \
    static inline int pcie_write_config_##name(pcie_dev_t *dev, uint64_t addr, type data) \
    { \
        return pcie_write_config(dev, addr, &data, sizeof data); \
    } \
    static inline type pcie_read_config_##name(pcie_dev_t *dev, uint64_t addr) \
    { \
        type data = (type)-1; \
        pcie_read_config(dev, addr, &data, sizeof data); \
        return data; \
    }
PCIE_ACCESSORS_(byte, uint8_t)
PCIE_ACCESSORS_(word, uint16_t)
PCIE_ACCESSORS_(long, uint32_t)
#undef PCIE_ACCESSORS_

static inline int pcie_set_vendorid(pcie_dev_t *dev, uint16_t id)
{
    return pcie_write_config_safe(dev, PCI_VENDOR_ID, &id, sizeof id);
}

static inline int pcie_set_deviceid(pcie_dev_t *dev, uint16_t id)
{
    return pcie_write_config_safe(dev, PCI_DEVICE_ID, &id, sizeof id);
}

static inline int pcie_set_bar(pcie_dev_t *dev, unsigned long bar, size_t size,
                               pcie_readfn_t readfn, pcie_writefn_t writefn, void *opaque)
{
    if (bar >= PCIE_BAR_COUNT || !size || (size & (size - 1)))
        return -1;
    dev->bar_size[bar] = size;
    dev->bar_readfn[bar] = readfn;
    dev->bar_writefn[bar] = writefn;
    dev->bar_data[bar] = opaque;
    return 0;
}

/* ---- interrupts, time, events ---- */

static inline int pcie_send_msi(pcie_dev_t *dev)
{
    return viaduct_msi(dev->net.device, 0) ? -1 : 0;
}

/* One task at a time: another takes its place. */
static inline int pcie_add_task(pcie_dev_t *dev, unsigned long usec, pcie_net_taskfn_t fn,
                                void *data)
{
    pcie_net_t *net = &dev->net;
    if (net->task > 0)
        viaduct_remove(net->device, net->task);
    net->task_fn = fn;
    net->task_data = data;
    net->task = viaduct_add_timer(net->device, usec, 0, pcie_on_task_, net);
    return net->task > 0 ? 0 : -1;
}

/* The same by the members of pcie_net_t. */
static inline int pcie_net_add_task(pcie_net_t *net, const struct timeval *delay,
                                    pcie_net_taskfn_t fn, void *data)
{
    pcie_dev_t *dev = container_of(net, pcie_dev_t, net);
    return pcie_add_task(dev, (unsigned long)(delay->tv_sec * 1000000 + delay->tv_usec), fn, data);
}

static inline int pcie_add_event(pcie_dev_t *dev, int fd, pcie_net_evfn_t fn, void *data)
{
    dev->net.ev_fn = fn;
    dev->net.ev_data = data;
    return viaduct_add_fd(dev->net.device, fd, pcie_on_event_, &dev->net) > 0 ? 0 : -1;
}

static inline int pcie_net_add_ev(pcie_net_t *net, int fd, pcie_net_evfn_t fn, void *data)
{
    return pcie_add_event(container_of(net, pcie_dev_t, net), fd, fn, data);
}

/* ---- host memory ---- */

static inline int pcie_write_host_mem(pcie_dev_t *dev, uint64_t addr, const void *data,
                                      size_t size)
{
    return viaduct_host_write(dev->net.device, addr, data, size) ? -1 : 0;
}

static inline int pcie_read_host_mem(pcie_dev_t *dev, uint64_t addr, void *data, size_t size)
{
    return viaduct_host_read(dev->net.device, addr, data, size) ? -1 : 0;
}

static inline int pcie_net_send_msg(pcie_net_t *net, pcie_net_msg_t *msg)
{
    int error;
    msg->header.size = (uint16_t)(offsetof(pcie_net_msg_t, data) + msg->size);
    switch (msg->op) {
    case PCIE_NET_OP_WRITE_MEM:
        error = viaduct_host_write(net->device, msg->addr, msg->data, msg->size);
        break;
    case PCIE_NET_OP_INT:
        error = viaduct_line(net->device, 1);
        break;
    case PCIE_NET_OP_MSI:
        error = viaduct_msi(net->device, 0);
        break;
    case PCIE_NET_OP_MSIX:
        error = viaduct_msix(net->device, 0);
        break;
    default:
        error = -1;
    }
    return error ? -1 : msg->header.size;
}

#endif
