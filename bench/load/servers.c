/* The servers: one thread, one epoll for all ports. */
#include "load.h"

#include <netinet/tcp.h>
#include <sched.h>

#define LISTENER (1ULL << 63)
#define MAX_DESCRIPTORS (1 << 20) /* the kernel's default for the most that a process may have (nr_open, proc(5)) */

/* Of servers on several CPUs, at one port, a connection goes to the one on the CPU that it comes from (socket(7)). */
static void share_port(int fd)
{
    cpu_set_t cpus;
    set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    if (sched_getaffinity(0, sizeof cpus, &cpus) < 0 || CPU_COUNT(&cpus) != 1)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cpus))
            set_int(fd, SOL_SOCKET, SO_INCOMING_CPU, cpu);
}

static int listen_on(char *where)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char *colon = strchr(where, ':');
    if (colon)
        *colon = '\0';
    if (colon && !is_ours(where, &address.sin_addr))
        usage();
    int port = number(colon ? colon + 1 : where, 0, 65535);
    address.sin_port = htons((uint16_t)port);
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    share_port(fd);
    if (bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 4096) < 0)
        die("listen on %s:%d: %s", inet_ntoa(address.sin_addr), port, strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d", ntohs(address.sin_port));
    return fd;
}

static unsigned char begun[MAX_DESCRIPTORS]; /* by descriptor: its first bytes have come */

static void accept_all(int epoll, int listener, uint32_t interest)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
            return;
        if (fd < 0)
            die("accept: %s", strerror(errno));
        set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (fd >= MAX_DESCRIPTORS)
            die("more than %d descriptors", MAX_DESCRIPTORS);
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
    if (begun[fd])
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

/* One byte, for whatever comes first: a greeting may come in several pieces, and as many bytes would be too much. */
static int answer_some(int fd, uint32_t events)
{
    (void)events;
    ssize_t n = recv(fd, buffer, MAX_SIZE, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    if (begun[fd])
        return 1;
    begun[fd] = 1;
    return send(fd, buffer, 1, MSG_NOSIGNAL) == 1;
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
               {"answer", answer_some, EPOLLIN}, {"source", send_some, EPOLLIN | EPOLLOUT},
               {"sink", discard_some, EPOLLIN}};

__attribute__((noreturn)) static void serve_as(const struct server *server, int count, char **ports)
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

void serve(const char *mode, int count, char **ports)
{
    for (size_t i = 0; i < sizeof servers / sizeof *servers; i++)
        if (!strcmp(mode, servers[i].mode))
            serve_as(&servers[i], count, ports);
}
