/* What the parts of the load generator share. main.c says what it does, common.c how each of these works. */
#ifndef LOAD_H
#define LOAD_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 64
#define MAX_SLOTS 4096           /* far above any axis, below the usual descriptor limits */
#define MAX_SIZE 16384           /* fits any socket buffer, so a message is always written in one piece */
#define MAX_HELD 200000
#define MAX_SAMPLES 50000000     /* 8 bytes each */
#define BULK_BYTES (256 * 1024)  /* one write of an ordinary bulk sender */
#define GRACE_NS 5000000000u     /* after the end, for what is still under way */
#define DISCARD_BYTES (1 << 20)
#define SOURCES 250              /* client addresses 127.0.0.2 to .251: TIME_WAIT must not use up the ports of one */

/* common.c */
extern char buffer[BULK_BYTES];
extern struct sockaddr_in target;
extern int sources;              /* how many client addresses connections come from in turn */

__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);
uint64_t now_ns(void);
void record(uint64_t ns);
int print_ops(uint64_t ops, uint64_t errors, uint64_t elapsed_ns, int last_errno);
int is_ours(const char *text, struct in_addr *address);
void set_int(int fd, int level, int option, int value);
int dial(int flags);
int dial_now(void);
int dial_blocking(void);
int new_epoll(void);
void watch(int epoll, int operation, int fd, uint32_t events, uint64_t key);
int wait_events(int epoll, struct epoll_event *events, uint64_t end_ns);

/* main.c */
__attribute__((noreturn)) void usage(void);
int number(const char *text, int low, int high);

/* servers.c: does not return where `mode` is a server's */
void serve(const char *mode, int count, char **ports);

/* clients.c, open.c: each returns the exit status */
int run_rr(int conns, uint64_t duration_ns, int size);
int run_cps(int parallel, uint64_t duration_ns, const char *hello_file);
int run_denied(int parallel, uint64_t duration_ns);
int run_bulk(int streams, uint64_t duration_ns, int up);
int run_hold(int count);
int run_open(int conns, double seconds, int size, int rate, const char *samples_file);

#endif
