/* load: the load generator and the servers of relay's bench. One thread, epoll(7), loopback only.
 *
 *   load echo PORT...                          sends back what it gets; closes when the other side has finished
 *   load edge-echo PORT...                     the same, but for a PROXY header (version 2) that may come first
 *   load source PORT...                        sends zeros until the connection is closed
 *   load sink PORT...                          discards what it gets
 *   load rr HOST PORT CONNS SECONDS SIZE       closed loop: SIZE bytes there and back, over CONNS connections
 *   load cps HOST PORT PARALLEL SECONDS        connect, one byte there and back, FIN, wait for the FIN, close
 *   load denied HOST PORT PARALLEL SECONDS     connect, wait to be thrown out
 *   load bulk HOST PORT STREAMS SECONDS down|up
 *
 * A server takes port 0 for any free one, and 127.x.y.z:PORT for another address than 127.0.0.1. Once it listens it prints {"ports": [...]} and stays until killed.
 * A client prints one JSON object: ops or bytes, seconds, errors, and p50_us, p99_us, max_us where there are operations.
 * Exit status: 0; 1 with a line on stderr where nothing could be measured; 2 for a wrong command line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 64
#define MAX_SLOTS 4096           /* far above any axis, below the usual descriptor limits */
#define MAX_SIZE 16384           /* fits any socket buffer, so a message is always written in one piece */
#define BULK_BYTES (256 * 1024)  /* one write of an ordinary bulk sender */
#define DISCARD_BYTES (1 << 20)
#define SOURCES 250              /* client addresses 127.0.0.2 to .251: TIME_WAIT must not use up the ports of one */
#define LISTENER (1ULL << 63)

static char buffer[BULK_BYTES];

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- command line ---- */

__attribute__((noreturn)) static void usage(void)
{
    fputs("usage: load echo|edge-echo|source|sink [127.x.y.z:]PORT...\n"
          "       load rr 127.x.y.z PORT CONNS SECONDS SIZE\n"
          "       load cps|denied 127.x.y.z PORT PARALLEL SECONDS\n"
          "       load bulk 127.x.y.z PORT STREAMS SECONDS down|up\n", stderr);
    exit(2);
}

static int number(const char *text, int low, int high)
{
    char *rest;
    long value = strtol(text, &rest, 10);
    if (*text == '\0' || *rest != '\0' || value < low || value > high)
        usage();
    return (int)value;
}

/* ---- latencies: log-linear buckets, 64 to each power of two, so a percentile is at most 1.6 % too low ---- */

#define SUB_BITS 6
static uint64_t histogram[64 << SUB_BITS], latencies, longest_ns;

static void record(uint64_t ns)
{
    unsigned bits = 64 - (unsigned)__builtin_clzll(ns | 1);
    unsigned shift = bits > SUB_BITS + 1 ? bits - SUB_BITS - 1 : 0;
    histogram[((uint64_t)shift << SUB_BITS) + (ns >> shift)]++;
    latencies++;
    if (ns > longest_ns)
        longest_ns = ns;
}

static double percentile_us(double share)
{
    uint64_t seen = 0, wanted = (uint64_t)(share * (double)latencies);
    for (uint64_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (seen > wanted) {
            unsigned shift = i >> SUB_BITS ? (unsigned)(i >> SUB_BITS) - 1 : 0;
            return (double)((i - ((uint64_t)shift << SUB_BITS)) << shift) / 1000;
        }
    }
    return (double)longest_ns / 1000;
}

static int print_ops(uint64_t ops, uint64_t errors, uint64_t elapsed_ns, int last_errno)
{
    if (ops == 0)
        die("not one operation was completed (%lu failed, the last one with: %s)", (unsigned long)errors,
            last_errno ? strerror(last_errno) : "no error, only silence");
    printf("{\"ops\": %lu, \"seconds\": %.6f, \"errors\": %lu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n",
           (unsigned long)ops, (double)elapsed_ns / 1e9, (unsigned long)errors, percentile_us(0.50), percentile_us(0.99),
           (double)longest_ns / 1000);
    return 0;
}

/* ---- sockets ---- */

static struct sockaddr_in target = {.sin_family = AF_INET};

static void set_int(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value) < 0)
        die("setsockopt: %s", strerror(errno));
}

/* A socket on its way to the target, from the next source address; non-blocking where `flags` says SOCK_NONBLOCK. */
static int dial(int flags)
{
    static unsigned sequence;
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + sequence++ % SOURCES)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    /* Without this bind(2) takes a port at once, unique over all targets, and the port range runs out (ip(7)). */
    set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

static int dial_now(void)
{
    int fd = dial(0);
    if (fd < 0)
        die("connect to %s:%d: %s", inet_ntoa(target.sin_addr), ntohs(target.sin_port), strerror(errno));
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        die("fcntl: %s", strerror(errno));
    return fd;
}

static int new_epoll(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1: %s", strerror(errno));
    return epoll;
}

static void watch(int epoll, int operation, int fd, uint32_t events, uint64_t key)
{
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* Waits until `end_ns` at the longest. */
static int wait_events(int epoll, struct epoll_event *events, uint64_t end_ns)
{
    uint64_t now = now_ns();
    int n = epoll_wait(epoll, events, EVENTS, now < end_ns ? (int)((end_ns - now) / 1000000) + 1 : 0);
    if (n < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    return n < 0 ? 0 : n;
}

/* ---- servers ---- */

static int is_loopback(const char *text, struct in_addr *address)
{
    return inet_pton(AF_INET, text, address) == 1 && (ntohl(address->s_addr) >> 24) == 127;
}

static int listen_on(char *where)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char *colon = strchr(where, ':');
    if (colon)
        *colon = '\0';
    if (colon && !is_loopback(where, &address.sin_addr))
        usage();
    int port = number(colon ? colon + 1 : where, 0, 65535);
    address.sin_port = htons((uint16_t)port);
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 4096) < 0)
        die("listen on %s:%d: %s", inet_ntoa(address.sin_addr), port, strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d", ntohs(address.sin_port));
    return fd;
}

static unsigned char begun[MAX_SLOTS]; /* by descriptor: its first bytes have come */

static void accept_all(int epoll, int listener, uint32_t interest)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
            return;
        if (fd < 0)
            die("accept: %s", strerror(errno));
        set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (fd < MAX_SLOTS)
            begun[fd] = 0;
        watch(epoll, EPOLL_CTL_ADD, fd, interest, (uint64_t)fd);
    }
}

/* What one connection's events ask for; false when it is over. */
static int echo_some(int fd, uint32_t events)
{
    (void)events;
    ssize_t n = recv(fd, buffer, MAX_SIZE, 0);
    if (n < 0)
        return errno == EAGAIN;
    return n > 0 && send(fd, buffer, (size_t)n, MSG_NOSIGNAL) == n;
}

/* Like an instance's relay, tell who asks for it by a TLV of type 0xE0 that the connection was taken, before all else. */
static void answer_header(int fd, const unsigned char *header, ssize_t length)
{
    static const char well[] = "\x01relay: taken\n";
    int local = header[12] == 0x20;
    ssize_t at = 16 + (local ? 0 : 12); /* the benchmark's clients come by IPv4 */
    if (at + 4 <= length && header[at] == 0xE0)
        send(fd, well, local ? sizeof well - 1 : 1, MSG_NOSIGNAL);
}

/* A header is written in one piece into an empty socket buffer, so all of it is there (doc/proxy-protocol.txt). */
static int edge_echo_some(int fd, uint32_t events)
{
    static const char signature[] = "\r\n\r\n\0\r\nQUIT\n";
    if (fd >= MAX_SLOTS || begun[fd])
        return echo_some(fd, events);
    begun[fd] = 1;
    ssize_t n = recv(fd, buffer, MAX_SIZE, 0), header = 0;
    if (n < 0)
        return errno == EAGAIN;
    if (n >= 16 && !memcmp(buffer, signature, sizeof signature - 1))
        header = 16 + ((unsigned char)buffer[14] << 8 | (unsigned char)buffer[15]);
    if (header && n >= header)
        answer_header(fd, (unsigned char *)buffer, header);
    n -= header;
    return n > 0 ? send(fd, buffer + header, (size_t)n, MSG_NOSIGNAL) == n : n == 0 && header;
}

/* MSG_TRUNC on a TCP socket drops the bytes without copying them (tcp(7)): the reader must not be the bottleneck. */
static int discard_some(int fd, uint32_t events)
{
    (void)events;
    ssize_t n = recv(fd, NULL, DISCARD_BYTES, MSG_TRUNC);
    return n < 0 ? errno == EAGAIN : n > 0;
}

static int send_some(int fd, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        return discard_some(fd, events);
    return send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) > 0 || errno == EAGAIN;
}

static const struct server {
    const char *mode;
    int (*some)(int fd, uint32_t events);
    uint32_t interest;
} servers[] = {{"echo", echo_some, EPOLLIN}, {"edge-echo", edge_echo_some, EPOLLIN},
             {"source", send_some, EPOLLIN | EPOLLOUT}, {"sink", discard_some, EPOLLIN}};

__attribute__((noreturn)) static void serve(const struct server *server, int count, char **ports)
{
    struct epoll_event events[EVENTS];
    int epoll = new_epoll();
    fputs("{\"ports\": [", stdout);
    for (int i = 0; i < count; i++) {
        if (i)
            fputs(", ", stdout);
        int fd = listen_on(ports[i]);
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, LISTENER | (uint64_t)fd);
    }
    fputs("]}\n", stdout);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = (int)(events[i].data.u64 & ~LISTENER);
            if (events[i].data.u64 & LISTENER)
                accept_all(epoll, fd, server->interest);
            else if (!server->some(fd, events[i].events))
                close(fd);
        }
    }
}

/* ---- clients ---- */

struct slot {
    int fd;
    enum { SENDING, WAITING, CLOSING } state;
    uint64_t start_ns;
    int got;
};
static struct slot slots[MAX_SLOTS];

static void send_message(struct slot *slot, int size)
{
    slot->got = 0;
    slot->start_ns = now_ns();
    if (send(slot->fd, buffer, (size_t)size, MSG_NOSIGNAL) != size)
        die("a message of %d bytes could not be sent in one piece", size);
}

static int run_rr(int conns, uint64_t duration_ns, int size)
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
    while (now_ns() < end) {
        int n = wait_events(epoll, events, end);
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

/* One event of a connect-echo-close connection: 1 when it is complete, 0 to go on, -1 with errno when it failed. */
static int cps_step(int epoll, struct slot *slot)
{
    char byte = 0;
    ssize_t n;
    switch (slot->state) {
    case SENDING:
        if (send(slot->fd, &byte, 1, MSG_NOSIGNAL) != 1)
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
    while (now_ns() < end) {
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
        int n = wait_events(epoll, events, end);
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

static int run_bulk(int streams, uint64_t duration_ns, int up)
{
    struct epoll_event events[EVENTS];
    uint64_t bytes = 0;
    int epoll = new_epoll();
    for (int i = 0; i < streams; i++) {
        slots[i].fd = dial_now();
        watch(epoll, EPOLL_CTL_ADD, slots[i].fd, up ? EPOLLOUT : EPOLLIN, (uint64_t)i);
    }
    uint64_t begin = now_ns(), end = begin + duration_ns;
    while (now_ns() < end) {
        int n = wait_events(epoll, events, end);
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

int main(int argc, char **argv)
{
    if (argc < 3)
        usage();
    const char *mode = argv[1];
    for (size_t i = 0; i < sizeof servers / sizeof *servers; i++)
        if (!strcmp(mode, servers[i].mode))
            serve(&servers[i], argc - 2, argv + 2);
    /* Only loopback: the sources are loopback addresses too. */
    if (argc < 6 || !is_loopback(argv[2], &target.sin_addr))
        usage();
    target.sin_port = htons((uint16_t)number(argv[3], 1, 65535));
    int count = number(argv[4], 1, MAX_SLOTS);
    double seconds = atof(argv[5]);
    if (!(seconds > 0 && seconds <= 3600))
        usage();
    uint64_t duration_ns = (uint64_t)(seconds * 1e9);
    if (!strcmp(mode, "rr") && argc == 7)
        return run_rr(count, duration_ns, number(argv[6], 1, MAX_SIZE));
    if (!strcmp(mode, "cps") && argc == 6)
        return run_connections(cps_step, EPOLLOUT, count, duration_ns);
    if (!strcmp(mode, "denied") && argc == 6)
        return run_connections(denied_step, EPOLLIN | EPOLLRDHUP, count, duration_ns);
    if (!strcmp(mode, "bulk") && argc == 7 && (!strcmp(argv[6], "down") || !strcmp(argv[6], "up")))
        return run_bulk(count, duration_ns, argv[6][0] == 'u');
    usage();
}
