/* The data plane's system calls, as calls.py has them: what the kernel did, or -errno. See calls.pxd. */
#ifndef RELAY_CALLS_H
#define RELAY_CALLS_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RELAY_AGAIN (-EAGAIN)

/* glibc makes of each call that may wait a point where its thread can be cancelled (pthreads(7)). In a process that once had
   a second thread that takes two atomic operations. Nobody cancels a thread here. */
#define RELAY_CALL(name, ...) syscall(SYS_##name, __VA_ARGS__)

/* What other processes look at, and a successor. Volatile: the order of the source holds, and no store is left out. */
typedef volatile int64_t relay_word;
typedef volatile uint32_t relay_length;
typedef volatile int32_t relay_int;

static inline long relay_splice(int source_fd, int sink_fd, long most_bytes) {
    long moved = RELAY_CALL(splice, source_fd, NULL, sink_fd, NULL, most_bytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return moved < 0 ? -errno : moved;
}

static inline long relay_receive_message(int fd, size_t header_at) {
    long done = RELAY_CALL(recvmmsg, fd, header_at, 1, MSG_DONTWAIT, NULL);
    return done < 0 ? -errno : done;
}

static inline long relay_send_message(int fd, size_t header_at) {
    long done = RELAY_CALL(sendmmsg, fd, header_at, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return done < 0 ? -errno : done;
}

static inline long relay_write_at(int fd, size_t at, long count) {
    long written = write(fd, (const void *)at, (size_t)count);
    return written < 0 ? -errno : written;
}

static inline void relay_put_text(size_t at, const char *text, long room) {
    strncpy((char *)at, text, (size_t)room);
    __asm__ volatile("" ::: "memory");  /* before what follows in the source */
}

#define RELAY_PEEK_MAX (32 * 1024)
static char relay_peek_buffer[RELAY_PEEK_MAX];

static inline long relay_receive(int fd, long most_bytes, int flags) {
    size_t room = most_bytes < RELAY_PEEK_MAX ? (size_t)most_bytes : RELAY_PEEK_MAX;
    long come = RELAY_CALL(recvfrom, fd, relay_peek_buffer, room, flags | MSG_DONTWAIT, NULL, NULL);
    return come < 0 ? -errno : come;
}

static inline long relay_peek(int fd, long most_bytes) { return relay_receive(fd, most_bytes, MSG_PEEK); }
static inline PyObject *relay_peeked(long count) { return PyBytes_FromStringAndSize(relay_peek_buffer, count); }
static inline long relay_take(int fd, long count) { return relay_receive(fd, count, 0); }

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

/* Who came with the last connection that was accepted here, and both as text. */
static union { struct sockaddr_in ipv4; struct sockaddr_in6 ipv6; struct sockaddr any; } relay_peer;
static char relay_peer_host[INET6_ADDRSTRLEN];
static char relay_peer_text[INET6_ADDRSTRLEN + 8];

static inline int relay_accept(int listener_fd) {
    socklen_t size = sizeof relay_peer;
    long fd = RELAY_CALL(accept4, listener_fd, &relay_peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return fd < 0 ? -errno : (int)fd;
}

static inline char *relay_put_number(char *at, unsigned number) {
    char digits[10];
    int count = 0;
    do digits[count++] = '0' + number % 10; while (number /= 10);
    while (count) *at++ = digits[--count];
    return at;
}

static inline const char *relay_accepted_host(void) {
    if (relay_peer.any.sa_family == AF_INET) {  /* by hand: inet_ntop(3) costs ten times as much */
        const unsigned char *part = (const unsigned char *)&relay_peer.ipv4.sin_addr;
        char *at = relay_peer_host;
        for (int n = 0; n < 4; n++) {
            at = relay_put_number(at, part[n]);
            *at++ = n < 3 ? '.' : 0;
        }
    } else {
        inet_ntop(AF_INET6, &relay_peer.ipv6.sin6_addr, relay_peer_host, sizeof relay_peer_host);
    }
    return relay_peer_host;
}

/* After relay_accepted_host. */
static inline const char *relay_accepted_peer(void) {
    int brackets = relay_peer.any.sa_family != AF_INET;
    char *at = relay_peer_text;
    if (brackets) *at++ = '[';
    at = stpcpy(at, relay_peer_host);
    if (brackets) *at++ = ']';
    *at++ = ':';
    at = relay_put_number(at, ntohs(brackets ? relay_peer.ipv6.sin6_port : relay_peer.ipv4.sin_port));
    *at = 0;
    return relay_peer_text;
}

static inline int relay_open_socket(int family) {
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

/* Twice: over loopback the handshake is over by then. */
static inline int relay_connect(int fd, const char *host, int port) {
    union { struct sockaddr_in ipv4; struct sockaddr_in6 ipv6; struct sockaddr any; } to = {0};
    socklen_t size = sizeof to.ipv4;
    if (inet_pton(AF_INET, host, &to.ipv4.sin_addr) == 1) {
        to.ipv4.sin_family = AF_INET;
        to.ipv4.sin_port = htons((uint16_t)port);
    } else if (inet_pton(AF_INET6, host, &to.ipv6.sin6_addr) == 1) {
        to.ipv6.sin6_family = AF_INET6;
        to.ipv6.sin6_port = htons((uint16_t)port);
        size = sizeof to.ipv6;
    } else {
        return -EINVAL;
    }
    if (RELAY_CALL(connect, fd, &to, size) == 0) return 0;
    if (errno != EINPROGRESS) return -errno;
    if (RELAY_CALL(connect, fd, &to, size) == 0 || errno == EISCONN) return 0;
    return errno == EALREADY ? -EINPROGRESS : -errno;
}

static inline int relay_shut_write(int fd) { return shutdown(fd, SHUT_WR) < 0 ? -errno : 0; }

static inline int relay_close(int fd) { return RELAY_CALL(close, fd) < 0 ? -errno : 0; }

static inline int relay_set_option(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) < 0 ? -errno : 0;
}

static inline int relay_finish_on_close(int fd) {
    struct linger none = {0, 0};
    return setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none) < 0 ? -errno : 0;
}

static inline int relay_pending_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

/* One batch of events, of the one poller that a process has. */
#define RELAY_EVENTS 256  /* the rest stays ready and comes with the next one */
static struct epoll_event relay_events[RELAY_EVENTS];

static inline long relay_poll(int epoll_fd, int wait_ms) {
    long count = RELAY_CALL(epoll_pwait, epoll_fd, relay_events, RELAY_EVENTS, wait_ms, NULL, 0);
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
