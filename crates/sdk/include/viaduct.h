/*
 * libviaduct: a PCIe device as an ordinary process.
 *
 * Make a device, say what it is, give it handlers, connect it to a port and run it:
 *
 *     viaduct_device *dev = viaduct_new("led", 0x1234, 0x0001);
 *     viaduct_set_bar(dev, 0, VIADUCT_MEMORY32, 4096);
 *     viaduct_set_handlers(dev, &handlers, &led);
 *     return viaduct_connect(dev, NULL) || viaduct_run(dev);
 *
 * The port is a process of its own (viaduct pcie --socket PATH --model THIS_PROGRAM), so a device
 * may crash, hang and be built anew while a virtual machine uses it: its driver reads all ones, and
 * finds a device that was reset when the program is back.
 *
 * A device belongs to one thread. Functions may be called from its handlers, except those marked
 * otherwise. They return 0, or a negative errno; viaduct_error() has a sentence.
 */
#ifndef VIADUCT_H
#define VIADUCT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct viaduct_device viaduct_device;
typedef struct viaduct_answer viaduct_answer;

/* Kinds of BARs. A 64-bit one takes the next BAR as well. */
enum { VIADUCT_IO = 1, VIADUCT_MEMORY32 = 2, VIADUCT_MEMORY64 = 3, VIADUCT_PREFETCHABLE = 0x100 };

/* Kinds of resets. */
enum { VIADUCT_RESET_MACHINE = 0, VIADUCT_RESET_FUNCTION = 1 };

/* What a device does when a driver asks. Any of them may be NULL. */
struct viaduct_handlers {
    /* A driver reads len bytes of a BAR; data holds zeros. Without this handler it gets ones. */
    void (*read)(void *context, unsigned bar, uint64_t offset, void *data, size_t len);
    /* The same, when given instead: the answer may come later, by viaduct_answer_read(). */
    void (*read_later)(void *context, unsigned bar, uint64_t offset, size_t len,
                       viaduct_answer *answer);
    /* A driver writes len bytes of a BAR. */
    void (*write)(void *context, unsigned bar, uint64_t offset, const void *data, size_t len);
    /* Everything is to be as after power-on; no transfer is reported any more. */
    void (*reset)(void *context, int kind);
    /* A driver has changed len bytes of the configuration space: see viaduct_get_config(). */
    void (*config_changed)(void *context, unsigned offset, size_t len);
    /* A virtual machine is there, or gone. */
    void (*host_present)(void *context, int present);
};

/* ---- what it is: before viaduct_connect() ---- */

/* A PCI Express endpoint without BARs and interrupts; NULL if there is no memory. */
viaduct_device *viaduct_new(const char *name, uint16_t vendor, uint16_t device);
/* Not from a handler. */
void viaduct_free(viaduct_device *dev);
/* Class, subclass and programming interface in 24 bits. */
int viaduct_set_class(viaduct_device *dev, uint32_t class_code, uint8_t revision);
int viaduct_set_subsystem(viaduct_device *dev, uint16_t vendor, uint16_t device);
/* 256 bytes of configuration space and no PCI Express capability. */
int viaduct_set_conventional(viaduct_device *dev);
/* The serial number of the card. */
int viaduct_set_serial(viaduct_device *dev, uint64_t serial);
/* The size is a power of two. */
int viaduct_set_bar(viaduct_device *dev, unsigned index, int kind, uint64_t size);
/* The bytes of a memory BAR from offset on, whole pages of 4096, are memory that the machine maps:
 * accesses are as quick as to its own, and no handler is called. To be called behind
 * viaduct_set_bar(). QEMU then waits for every write to this device's other registers. */
int viaduct_set_bar_memory(viaduct_device *dev, unsigned index, uint64_t offset, uint64_t len);
int viaduct_set_intx(viaduct_device *dev);
int viaduct_set_msi(viaduct_device *dev, unsigned vectors);
/* The table takes 16 bytes a vector, the pending bits 8 bytes for 64 vectors. */
int viaduct_set_msix(viaduct_device *dev, unsigned vectors, unsigned bar, uint32_t table,
                     uint32_t pending);
/* What follows the id and the link, and the bits of it that a driver may change (or NULL). */
int viaduct_add_capability(viaduct_device *dev, uint8_t id, const void *body,
                           const void *writable, size_t len);
/* What follows the header. */
int viaduct_add_extended_capability(viaduct_device *dev, uint16_t id, uint8_t version,
                                    const void *body, const void *writable, size_t len);
int viaduct_set_handlers(viaduct_device *dev, const struct viaduct_handlers *handlers,
                         void *context);

/* ---- running ---- */

/* Connects to the port at this socket, or at $VIADUCT_PORT if NULL. */
int viaduct_connect(viaduct_device *dev, const char *port);
/* Byte 0 of a BAR with memory, after viaduct_connect(), or NULL. The machine reads and writes it at
 * any time. It is the port's: when the program comes back it is as it was. */
volatile void *viaduct_bar_memory(viaduct_device *dev, unsigned index);
/* Serves until the port has gone or viaduct_stop(); not from a handler. */
int viaduct_run(viaduct_device *dev);
/* Ends viaduct_run() after the handler that calls this. */
void viaduct_stop(viaduct_device *dev);
/* For a loop of one's own: readable when viaduct_process() has something to do. */
int viaduct_fd(const viaduct_device *dev);
/* Does what there is to do; waits for something at most so long, for ever if negative. -EPIPE when
   the port has gone. Not from a handler. */
int viaduct_process(viaduct_device *dev, int timeout_ms);
/* Whether the port wants something that viaduct_process() would do: as cheap as a look at memory,
   for a loop that has other work. Timers, descriptors and the port's end are not seen by it. */
int viaduct_pending(const viaduct_device *dev);
/* What the last function that failed has to say. */
const char *viaduct_error(const viaduct_device *dev);
/* A line in the port's log. */
void viaduct_log(viaduct_device *dev, int is_error, const char *line);

/* ---- answers, interrupts, configuration ---- */

/* Answers a read of read_later, once; NULL for all ones. */
void viaduct_answer_read(viaduct_answer *answer, const void *data, size_t len);
/* By what the driver has enabled: MSI-X, else MSI, else the INTx line goes up. */
int viaduct_interrupt(viaduct_device *dev, unsigned vector);
int viaduct_msi(viaduct_device *dev, unsigned vector);
int viaduct_msix(viaduct_device *dev, unsigned vector);
int viaduct_line(viaduct_device *dev, int raised);
/* As a driver reads it. */
int viaduct_get_config(viaduct_device *dev, unsigned offset, void *data, size_t len);
/* Whatever a driver may write there; also before viaduct_connect(). */
int viaduct_put_config(viaduct_device *dev, unsigned offset, const void *data, size_t len);

/* ---- host memory ---- */

/* Waits; where memory is shared with the port this is a copy. -EFAULT: no such memory, or bus
   mastering is off. */
int viaduct_host_read(viaduct_device *dev, uint64_t address, void *data, size_t len);
int viaduct_host_write(viaduct_device *dev, uint64_t address, const void *data, size_t len);
/* Does not wait: done is called, perhaps at once, with 0 or a negative errno. Up to 64 go at a
   time; data is used until then. */
int viaduct_host_read_start(viaduct_device *dev, uint64_t address, void *data, size_t len,
                            void (*done)(void *arg, int status), void *arg);
int viaduct_host_write_start(viaduct_device *dev, uint64_t address, const void *data, size_t len,
                             void (*done)(void *arg, int status), void *arg);

/* ---- time and other descriptors; also before viaduct_connect() ---- */

/* Calls fire after delay_us, and then every period_us if that is not 0; a number, or a negative
   errno. */
int viaduct_add_timer(viaduct_device *dev, uint64_t delay_us, uint64_t period_us,
                      void (*fire)(void *arg), void *arg);
/* Calls ready whenever the descriptor is readable; a number, or a negative errno. */
int viaduct_add_fd(viaduct_device *dev, int fd, void (*ready)(void *arg, int fd), void *arg);
/* Ends a timer or the watch of a descriptor. */
int viaduct_remove(viaduct_device *dev, int number);

#ifdef __cplusplus
}
#endif

#endif
