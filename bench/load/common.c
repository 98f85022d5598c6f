/* Time, latencies, sockets and epoll, for servers and clients alike. */
#include "load.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <time.h>

char buffer[BULK_BYTES];
int sources = SOURCES;

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- latencies: log-linear buckets, 64 to each power of two, so a percentile is at most 1.6 % too low ---- */

#define SUB_BITS 6
static uint64_t histogram[64 << SUB_BITS], latencies, longest_ns;

void record(uint64_t ns)
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

int print_ops(uint64_t ops, uint64_t errors, uint64_t elapsed_ns, int last_errno)
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

struct sockaddr_in target = {.sin_family = AF_INET};

void set_int(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value) < 0)
        die("setsockopt: %s", strerror(errno));
}

/* Loopback, or the network that is set aside for benchmarks (RFC 2544): nobody else is ever loaded. */
int is_ours(const char *text, struct in_addr *address)
{
    if (inet_pton(AF_INET, text, address) != 1)
        return 0;
    uint32_t host = ntohl(address->s_addr);
    return host >> 24 == 127 || host >> 17 == (198u << 24 | 18u << 16) >> 17;
}

/* On loopback every address is ours to come from; on another network the kernel's choice is the only one. */
static void bind_source(int fd)
{
    static unsigned sequence;
    if (ntohl(target.sin_addr.s_addr) >> 24 != 127)
        return;
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + sequence++ % (unsigned)sources)};
    /* Without this bind(2) takes a port at once, unique over all targets, and the port range runs out (ip(7)). */
    set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind: %s", strerror(errno));
}

/* A socket on its way to the target, from the next source address; non-blocking where `flags` says SOCK_NONBLOCK. */
int dial(int flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    bind_source(fd);
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

/* A connected socket. */
int dial_blocking(void)
{
    int fd = dial(0);
    if (fd < 0)
        die("connect to %s:%d: %s", inet_ntoa(target.sin_addr), ntohs(target.sin_port), strerror(errno));
    return fd;
}

/* The same, non-blocking from then on. */
int dial_now(void)
{
    int fd = dial_blocking();
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        die("fcntl: %s", strerror(errno));
    return fd;
}

int new_epoll(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1: %s", strerror(errno));
    return epoll;
}

void watch(int epoll, int operation, int fd, uint32_t events, uint64_t key)
{
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* Waits until `end_ns` at the longest. */
int wait_events(int epoll, struct epoll_event *events, uint64_t end_ns)
{
    uint64_t now = now_ns();
    int n = epoll_wait(epoll, events, EVENTS, now < end_ns ? (int)((end_ns - now) / 1000000) + 1 : 0);
    if (n < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    return n < 0 ? 0 : n;
}
