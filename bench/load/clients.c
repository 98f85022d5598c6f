/* The clients whose next request waits for the last answer, and the one that only holds connections open. */
#include "load.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>

struct slot {
    int fd;
    enum { SENDING, WAITING, CLOSING } state;
    uint64_t start_ns;
    int got;
};
static struct slot slots[MAX_SLOTS];

/* Until when it goes on. Where the machine is busy, the first operation may take longer than all of the measurement. */
static uint64_t deadline_ns(uint64_t end_ns, uint64_t done)
{
    return done ? end_ns : end_ns + GRACE_NS;
}

static void send_message(struct slot *slot, int size)
{
    slot->got = 0;
    slot->start_ns = now_ns();
    if (send(slot->fd, buffer, (size_t)size, MSG_NOSIGNAL) != size)
        die("a message of %d bytes could not be sent in one piece", size);
}

int run_rr(int conns, uint64_t duration_ns, int size)
{
    struct epoll_event events[EVENTS];
    uint64_t ops = 0;
    int epoll = new_epoll();
    for (int i = 0; i < conns; i++) {
        slots[i].fd = dial_now();
        watch(epoll, EPOLL_CTL_ADD, slots[i].fd, EPOLLIN, (uint64_t)i);
    }
    uint64_t begin = now_ns(), end = begin + duration_ns;
    for (int i = 0; i < conns; i++)
        send_message(&slots[i], size);
    while (now_ns() < deadline_ns(end, ops)) {
        int n = wait_events(epoll, events, deadline_ns(end, ops));
        for (int i = 0; i < n; i++) {
            struct slot *slot = &slots[events[i].data.u64];
            ssize_t got = recv(slot->fd, buffer, (size_t)(size - slot->got), 0);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0)
                die("a connection ended in the middle of a round trip: %s", got ? strerror(errno) : "FIN");
            slot->got += (int)got;
            if (slot->got < size)
                continue;
            record(now_ns() - slot->start_ns);
            ops++;
            send_message(slot, size);
        }
    }
    return print_ops(ops, 0, now_ns() - begin, 0);
}

static char hello[MAX_SIZE]; /* what a connection says first */
static size_t hello_bytes = 1;

/* One event of a connect-answer-close connection: 1 when it is complete, 0 to go on, -1 with errno when it failed. */
static int cps_step(int epoll, struct slot *slot)
{
    char byte = 0;
    ssize_t n;
    switch (slot->state) {
    case SENDING:
        if (send(slot->fd, hello, hello_bytes, MSG_NOSIGNAL) != (ssize_t)hello_bytes)
            return errno == EAGAIN ? 0 : -1;
        slot->state = WAITING;
        watch(epoll, EPOLL_CTL_MOD, slot->fd, EPOLLIN, (uint64_t)(slot - slots));
        return 0;
    case WAITING:
        n = recv(slot->fd, &byte, 1, 0);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        errno = EPIPE;
        if (n == 0)
            return -1;
        record(now_ns() - slot->start_ns);
        slot->state = CLOSING;
        return shutdown(slot->fd, SHUT_WR) < 0 ? -1 : 0;
    case CLOSING:
        n = recv(slot->fd, &byte, 1, 0);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        errno = EPROTO;
        return n == 0 ? 1 : -1;
    }
    return -1;
}

/* As cps_step, for a source that the envelope denies. ECONNREFUSED is nobody listening, so it is no denial. */
static int denied_step(int epoll, struct slot *slot)
{
    (void)epoll;
    char byte;
    ssize_t n = recv(slot->fd, &byte, 1, 0);
    if (n > 0)
        die("the denied port answered with data");
    if (n < 0 && errno != ECONNRESET)
        return errno == EAGAIN ? 0 : -1;
    record(now_ns() - slot->start_ns);
    return 1;
}

static int run_connections(int (*step)(int, struct slot *), uint32_t interest, int parallel, uint64_t duration_ns)
{
    struct epoll_event events[EVENTS];
    uint64_t ops = 0, errors = 0;
    int epoll = new_epoll(), last_errno = 0;
    uint64_t begin = now_ns(), end = begin + duration_ns;
    for (int i = 0; i < parallel; i++)
        slots[i].fd = -1;
    while (now_ns() < deadline_ns(end, ops + errors)) {
        for (int i = 0; i < parallel; i++) {
            if (slots[i].fd >= 0)
                continue;
            slots[i].state = SENDING;
            slots[i].start_ns = now_ns();
            slots[i].fd = dial(SOCK_NONBLOCK);
            if (slots[i].fd < 0) {
                last_errno = errno;
                errors++;
            } else {
                watch(epoll, EPOLL_CTL_ADD, slots[i].fd, interest, (uint64_t)i);
            }
        }
        int n = wait_events(epoll, events, deadline_ns(end, ops + errors));
        for (int i = 0; i < n; i++) {
            struct slot *slot = &slots[events[i].data.u64];
            int outcome = step(epoll, slot);
            if (outcome == 0)
                continue;
            if (outcome > 0) {
                ops++;
            } else {
                last_errno = errno;
                errors++;
            }
            close(slot->fd);
            slot->fd = -1;
        }
    }
    return print_ops(ops, errors, now_ns() - begin, last_errno);
}

int run_bulk(int streams, uint64_t duration_ns, int up)
{
    struct epoll_event events[EVENTS];
    uint64_t bytes = 0;
    int epoll = new_epoll();
    for (int i = 0; i < streams; i++) {
        slots[i].fd = dial_now();
        watch(epoll, EPOLL_CTL_ADD, slots[i].fd, up ? EPOLLOUT : EPOLLIN, (uint64_t)i);
    }
    uint64_t begin = now_ns(), end = begin + duration_ns;
    while (now_ns() < deadline_ns(end, bytes)) {
        int n = wait_events(epoll, events, deadline_ns(end, bytes));
        for (int i = 0; i < n; i++) {
            int fd = slots[events[i].data.u64].fd;
            ssize_t moved = up ? send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) : recv(fd, NULL, DISCARD_BYTES, MSG_TRUNC);
            if (moved < 0 && errno == EAGAIN)
                continue;
            if (moved <= 0)
                die("a stream ended early: %s", moved ? strerror(errno) : "FIN");
            bytes += (uint64_t)moved;
        }
    }
    uint64_t elapsed = now_ns() - begin;
    /* What nobody has acknowledged yet was not moved (SIOCOUTQ, tcp(7)). */
    for (int i = 0, queued = 0; up && i < streams; i++)
        if (ioctl(slots[i].fd, SIOCOUTQ, &queued) == 0)
            bytes -= (uint64_t)queued;
    if (bytes == 0)
        die("not one byte was moved");
    printf("{\"bytes\": %lu, \"seconds\": %.6f, \"errors\": 0}\n", (unsigned long)bytes, (double)elapsed / 1e9);
    return 0;
}

int run_cps(int parallel, uint64_t duration_ns, const char *hello_file)
{
    if (hello_file) {
        int fd = open(hello_file, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, hello, sizeof hello);
        if (n <= 0 || n == (ssize_t)sizeof hello)
            die("%s: %s", hello_file, n < 0 ? strerror(errno) : "write between 1 and 16383 bytes into it");
        close(fd);
        hello_bytes = (size_t)n;
    }
    return run_connections(cps_step, EPOLLOUT, parallel, duration_ns);
}

int run_denied(int parallel, uint64_t duration_ns)
{
    return run_connections(denied_step, EPOLLIN | EPOLLRDHUP, parallel, duration_ns);
}

/* A byte there and back proves that each connection goes all the way, and does not wait in a backlog. */
int run_hold(int count)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0}; /* at the end: no port stays in TIME_WAIT */
    for (int i = 0; i < count; i++) {
        char byte = 0;
        int fd = dial_blocking();
        if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) < 0)
            die("setsockopt: %s", strerror(errno));
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
            die("connection %d of %d does not answer", i + 1, count);
    }
    printf("{\"held\": %d}\n", count);
    fflush(stdout);
    for (;;)
        pause();
}
