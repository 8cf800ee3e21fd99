/*
 * A vhost-user disk that turns against the machine it serves. It answers until the first write
 * comes. Then it looks through every descriptor it was given for two texts, tries to get out of
 * them, says what it found, spoils all it can write if told so, and answers nothing any more,
 * neither requests nor messages.
 *
 *     spy SOCKET BAIT SECRET [spoil]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAGE = 4096, REGIONS = 8, QUEUES = 4, FDS = 64, SECTORS = 32768 };

static struct region {
    uint64_t start, size, user, offset;
    int fd;
    uint8_t *at;
} regions[REGIONS];
static struct queue {
    uint64_t descriptors, driver, device;
    uint32_t size;
    int kick, call;
    uint16_t seen;
} queues[QUEUES];
/* Every descriptor that ever came. */
static int fds[FDS];
static unsigned region_count, fd_count, escapes;
static const char *bait, *secret;
static int spoils;

/* What follows a header of twelve bytes. */
static struct { uint32_t request, flags, size; } header;
static union {
    uint64_t number;
    struct { uint32_t index, value; } state;
    struct { uint32_t index, flags; uint64_t descriptors, device, driver, log; } addresses;
    struct { uint64_t count; struct { uint64_t start, size, user, offset; } of[REGIONS]; } table;
    struct { uint32_t offset, size, flags; uint8_t bytes[256]; } config;
    uint8_t bytes[512];
} payload;

static void die(const char *what)
{
    fprintf(stderr, "%s (%s)\n", what, strerror(errno));
    exit(1);
}

static void *reach(uint64_t address, int is_ours)
{
    for (unsigned i = 0; i < region_count; i++) {
        uint64_t in = address - (is_ours ? regions[i].user : regions[i].start);
        if (in < regions[i].size)
            return regions[i].at + regions[i].offset + in;
    }
    die("an address in no region");
    return NULL;
}

/* The kernel says EFAULT where this process would get a signal, else EINVAL about the number. */
static int is_there(const uint8_t *page)
{
    return syscall(SYS_rt_sigprocmask, -1, page, NULL, 8) < 0 && errno == EINVAL;
}

static unsigned occurrences(const uint8_t *at, size_t len, const char *text)
{
    unsigned count = 0;
    const uint8_t *end = at + len, *next = at;
    while ((next = memmem(next, (size_t)(end - next), text, strlen(text)))) {
        count++;
        next++;
    }
    return count;
}

/* Counts both texts and the pages that are there, and spoils these if it is to. */
static void look_through(int spoil)
{
    unsigned baits = 0, secrets = 0, pages = 0;
    for (unsigned i = 0; i < region_count; i++) {
        uint8_t *at = regions[i].at, *run = NULL;
        uint8_t *end = at + regions[i].offset + regions[i].size;
        for (; at <= end; at += PAGE) {
            if (at < end && is_there(at)) {
                run = run ? run : at;
                pages++;
                continue;
            }
            if (!run)
                continue;
            baits += occurrences(run, (size_t)(at - run), bait);
            secrets += occurrences(run, (size_t)(at - run), secret);
            if (spoil)
                memset(run, 0xff, (size_t)(at - run));
            run = NULL;
        }
    }
    printf("spy: %u descriptors, %u regions, %u pages, %u baits, %u secrets, %u escapes\n",
           fd_count, region_count, pages, baits, secrets, escapes);
    fflush(stdout);
}

static void escaped(int fd, const char *how)
{
    escapes++;
    printf("descriptor %d: %s\n", fd, how);
}

/* Whether something can be reached that is no memory of the region, which ends at `end`. */
static void try_to_leave(int fd, uint64_t end)
{
    const uint64_t far = 4ULL << 30, step = 1 << 20;
    char byte = 'x';
    struct stat stat = { 0 };
    fstat(fd, &stat);
    uint64_t size = (uint64_t)stat.st_size;
    if (!ftruncate(fd, (off_t)(size + step)))
        escaped(fd, "it grows");
    if (!ftruncate(fd, (off_t)(size / 2)))
        escaped(fd, "it shrinks");
    if (!fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL))
        escaped(fd, "it can be sealed");
    if (end && pwrite(fd, &byte, 1, (off_t)end) > 0)
        escaped(fd, "it is written beyond the end");
    uint8_t *beyond = mmap(NULL, far, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)end);
    if (beyond == MAP_FAILED)
        return;
    if (!end)
        escaped(fd, "an event is mapped");
    for (uint64_t at = 0; at < far; at += at < step ? PAGE : step)
        if (is_there(beyond + at))
            escaped(fd, "there is memory beyond the end");
    munmap(beyond, far);
}

static void turn(void)
{
    for (unsigned i = 0; i < fd_count; i++) {
        uint64_t end = 0;
        for (unsigned r = 0; r < region_count; r++)
            if (regions[r].fd == fds[i])
                end = regions[r].offset + regions[r].size;
        try_to_leave(fds[i], end);
    }
    look_through(spoils);
    if (spoils)
        for (unsigned i = 0; i < QUEUES; i++)
            if (queues[i].call > 0 && write(queues[i].call, &(uint64_t){ 1 }, 8) < 0)
                perror("call");
    for (;;)
        pause();
}

/* Says of every request but a write that it succeeded, and leaves the data as it is. */
static void serve(struct queue *queue)
{
    struct { uint64_t address; uint32_t len; uint16_t flags, next; } volatile *table, *one;
    table = reach(queue->descriptors, 1);
    volatile uint16_t *driver = reach(queue->driver, 1), *device = reach(queue->device, 1);
    while (queue->seen != __atomic_load_n(&driver[1], __ATOMIC_ACQUIRE)) {
        uint16_t head = driver[2 + queue->seen % queue->size];
        one = &table[head % queue->size];
        if (*(uint32_t *)reach(one->address, 0) == 1)
            turn();
        for (uint32_t steps = 0; one->flags & 1 && steps < queue->size; steps++)
            one = &table[one->next % queue->size];
        *(uint8_t *)reach(one->address + one->len - 1, 0) = 0;
        volatile uint32_t *used = (volatile uint32_t *)(device + 2) + queue->seen % queue->size * 2;
        used[0] = head;
        used[1] = 1;
        queue->seen++;
        __atomic_store_n(&device[1], queue->seen, __ATOMIC_RELEASE);
    }
    if (write(queue->call, &(uint64_t){ 1 }, 8) < 0)
        die("call");
}

static void map(const int *received)
{
    region_count = (unsigned)payload.table.count % (REGIONS + 1);
    for (unsigned i = 0; i < region_count; i++) {
        struct region *region = &regions[i];
        region->start = payload.table.of[i].start;
        region->size = payload.table.of[i].size;
        region->user = payload.table.of[i].user;
        region->offset = payload.table.of[i].offset;
        region->fd = received[i];
        size_t len = region->offset + region->size;
        region->at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
        if (region->at == MAP_FAILED)
            die("map a region");
    }
}

static void reply(int to, uint32_t size)
{
    header.flags = 1 | 4;
    header.size = size;
    if (write(to, &header, sizeof header) < 0 || write(to, &payload, size) < 0)
        die("reply");
}

/* What is not named here needs no more than to be acknowledged. */
static void obey(int line, const int *received)
{
    enum { ACKNOWLEDGE = 8 };
    struct queue *queue = &queues[payload.number % QUEUES];
    switch (header.request) {
    case 1: /* GET_FEATURES: VERSION_1, PROTOCOL_FEATURES */
        payload.number = 1ULL << 32 | 1 << 30;
        return reply(line, 8);
    case 15: /* GET_PROTOCOL_FEATURES: REPLY_ACK, CONFIG */
        payload.number = 1 << 3 | 1 << 9;
        return reply(line, 8);
    case 17: /* GET_QUEUE_NUM */
        payload.number = 1;
        return reply(line, 8);
    case 24: /* GET_CONFIG: the capacity */
        memset(payload.config.bytes, 0, sizeof payload.config.bytes);
        if (!payload.config.offset)
            memcpy(payload.config.bytes, &(uint64_t){ SECTORS }, 8);
        return reply(line, header.size);
    case 11: /* GET_VRING_BASE */
        payload.state.value = queue->seen;
        return reply(line, 8);
    case 5: map(received); break;
    case 8: queue->size = payload.state.value; break;
    case 10: queue->seen = (uint16_t)payload.state.value; break;
    case 9:
        queue->descriptors = payload.addresses.descriptors;
        queue->driver = payload.addresses.driver;
        queue->device = payload.addresses.device;
        break;
    case 12: queue->kick = received[0]; break;
    case 13: queue->call = received[0]; break;
    }
    if (header.flags & ACKNOWLEDGE) {
        payload.number = 0;
        reply(line, 8);
    }
}

/* Takes a message with the descriptors that came along; 0 if there will be no more. */
static int hear(int line)
{
    char control[CMSG_SPACE(REGIONS * sizeof(int))];
    int received[REGIONS] = { 0 };
    struct iovec into = { &header, sizeof header };
    struct msghdr message = { .msg_iov = &into, .msg_iovlen = 1, .msg_control = control,
                              .msg_controllen = sizeof control };
    if (recvmsg(line, &message, MSG_WAITALL) != sizeof header)
        return 0;
    memset(&payload, 0, sizeof payload);
    if (header.size > sizeof payload)
        die("a long message");
    if (header.size && recv(line, &payload, header.size, MSG_WAITALL) != (ssize_t)header.size)
        return 0;
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    if (part && part->cmsg_type == SCM_RIGHTS) {
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(received, CMSG_DATA(part), count * sizeof(int));
        for (size_t i = 0; i < count && fd_count < FDS; i++)
            fds[fd_count++] = received[i];
    }
    obey(line, received);
    return 1;
}

static void talk(int line)
{
    for (;;) {
        struct pollfd wait[1 + QUEUES] = { { .fd = line, .events = POLLIN } };
        for (unsigned i = 0; i < QUEUES; i++) {
            wait[1 + i].fd = queues[i].kick ? queues[i].kick : -1;
            wait[1 + i].events = POLLIN;
        }
        if (poll(wait, 1 + QUEUES, -1) < 0)
            die("wait");
        uint64_t count;
        for (unsigned i = 0; i < QUEUES; i++)
            if (wait[1 + i].revents && read(queues[i].kick, &count, 8) == 8)
                serve(&queues[i]);
        if (wait[0].revents && !hear(line))
            return;
    }
}

int main(int count, char **words)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    if (count < 4)
        return 2;
    bait = words[2];
    secret = words[3];
    spoils = count > 4;
    strncpy(name.sun_path, words[1], sizeof name.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1))
        die("listen");
    for (;;) {
        int line = accept(listener, NULL, NULL);
        if (line < 0)
            die("accept");
        memset(queues, 0, sizeof queues);
        region_count = 0;
        talk(line);
        close(line);
    }
}
