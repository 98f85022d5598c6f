/* The data plane's system calls, as calls.py has them: what the kernel did, or -errno. See calls.pxd. */
#ifndef RELAY_CALLS_H
#define RELAY_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RELAY_AGAIN (-EAGAIN)

/* What other processes look at, and a successor. Volatile: it is stored in the order of the source, and no store is left out. */
typedef volatile int64_t relay_word;
typedef volatile uint32_t relay_length;
typedef volatile int32_t relay_int;

static inline long relay_splice(int source_fd, int sink_fd, long most_bytes) {
    long moved = splice(source_fd, NULL, sink_fd, NULL, (size_t)most_bytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return moved < 0 ? -errno : moved;
}

static inline long relay_receive_message(int fd, size_t header_at) {
    int done = recvmmsg(fd, (struct mmsghdr *)header_at, 1, MSG_DONTWAIT, NULL);
    return done < 0 ? -errno : done;
}

static inline long relay_send_message(int fd, size_t header_at) {
    int done = sendmmsg(fd, (struct mmsghdr *)header_at, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return done < 0 ? -errno : done;
}

static inline long relay_write_at(int fd, size_t at, long count) {
    long written = write(fd, (const void *)at, (size_t)count);
    return written < 0 ? -errno : written;
}

static inline long relay_unsent_bytes(int fd) {
    int count = 0;
    return ioctl(fd, TIOCOUTQ, &count) < 0 ? 0 : count;
}

static inline int relay_open_poll(void) {
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd < 0 ? -errno : epoll_fd;
}

static inline long relay_readable_bytes(int fd) {
    int count = 0;
    return ioctl(fd, FIONREAD, &count) < 0 ? 0 : count;
}

/* One batch of events, of the one poller that a process has. */
#define RELAY_EVENTS 256  /* the rest stays ready and comes with the next one */
static struct epoll_event relay_events[RELAY_EVENTS];

static inline long relay_poll(int epoll_fd, int wait_ms) {
    int count = epoll_wait(epoll_fd, relay_events, RELAY_EVENTS, wait_ms);
    return count >= 0 ? count : errno == EINTR ? 0 : -errno;
}

static inline int relay_event_fd(long n) { return relay_events[n].data.fd; }
static inline unsigned relay_event_mask(long n) { return relay_events[n].events; }

static inline long relay_control_poll(int epoll_fd, int how, int fd, unsigned interest) {
    struct epoll_event event = {.events = interest, .data.fd = fd};
    return epoll_ctl(epoll_fd, how, fd, &event) < 0 ? -errno : 0;
}

static inline int64_t relay_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

#endif
