/* load: the load generator and the servers of relay's bench. One thread, epoll(7).
 *
 *   load echo PORT...                          sends back what it gets; closes when the other side has finished
 *   load edge-echo PORT...                     the same, but for a PROXY header (version 2) that may come first
 *   load answer PORT...                        sends one byte once something came; closes when the other side has
 *   load source PORT...                        sends zeros until the connection is closed
 *   load sink PORT...                          discards what it gets
 *   load rr HOST PORT CONNS SECONDS SIZE       closed loop: SIZE bytes there and back, over CONNS connections
 *   load open HOST PORT CONNS SECONDS SIZE RATE FILE
 *                                              the same at a fixed RATE in all; latencies go to FILE (uint64_t, ns)
 *   load cps HOST PORT PARALLEL SECONDS [FILE [SOURCES]]
 *                                              connect, one byte or FILE there, one byte back, FIN, wait for the FIN
 *   load denied HOST PORT PARALLEL SECONDS     connect, wait to be thrown out
 *   load bulk HOST PORT STREAMS SECONDS down|up
 *   load hold HOST PORT COUNT                  opens COUNT connections, each proved by a byte there and back
 *
 * A server takes port 0 for any free one, and ADDRESS:PORT for another address than 127.0.0.1. Once it listens it
 * prints {"ports": [...]} and stays until killed. `hold` prints {"held": COUNT} and does the same.
 * A client prints one JSON object: ops or bytes, seconds, errors, and in a closed loop p50_us, p99_us, max_us.
 * Every address is in 127.0.0.0/8 or in 198.18.0.0/15.
 * Exit status: 0; 1 with a line on stderr where nothing could be measured; 2 for a wrong command line.
 */
#include "load.h"

void usage(void)
{
    fputs("usage: load echo|edge-echo|answer|source|sink [ADDRESS:]PORT...\n"
          "       load rr ADDRESS PORT CONNS SECONDS SIZE\n"
          "       load open ADDRESS PORT CONNS SECONDS SIZE RATE FILE\n"
          "       load cps ADDRESS PORT PARALLEL SECONDS [FILE [SOURCES]]\n"
          "       load denied ADDRESS PORT PARALLEL SECONDS\n"
          "       load bulk ADDRESS PORT STREAMS SECONDS down|up\n"
          "       load hold ADDRESS PORT COUNT\n"
          "addresses: 127.0.0.0/8 or 198.18.0.0/15\n", stderr);
    exit(2);
}

int number(const char *text, int low, int high)
{
    char *rest;
    long value = strtol(text, &rest, 10);
    if (*text == '\0' || *rest != '\0' || value < low || value > high)
        usage();
    return (int)value;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        usage();
    const char *mode = argv[1];
    serve(mode, argc - 2, argv + 2);
    if (argc < 5 || !is_ours(argv[2], &target.sin_addr))
        usage();
    target.sin_port = htons((uint16_t)number(argv[3], 1, 65535));
    if (!strcmp(mode, "hold") && argc == 5)
        return run_hold(number(argv[4], 1, MAX_HELD));
    if (argc < 6)
        usage();
    int count = number(argv[4], 1, MAX_SLOTS);
    double seconds = atof(argv[5]);
    if (!(seconds > 0 && seconds <= 3600))
        usage();
    uint64_t duration_ns = (uint64_t)(seconds * 1e9);
    if (!strcmp(mode, "rr") && argc == 7)
        return run_rr(count, duration_ns, number(argv[6], 1, MAX_SIZE));
    if (!strcmp(mode, "open") && argc == 9)
        return run_open(count, seconds, number(argv[6], 1, MAX_SIZE), number(argv[7], 1, 10000000), argv[8]);
    if (!strcmp(mode, "cps") && argc <= 8) {
        if (argc == 8)
            sources = number(argv[7], 1, SOURCES);
        return run_cps(count, duration_ns, argc > 6 ? argv[6] : NULL);
    }
    if (!strcmp(mode, "denied") && argc == 6)
        return run_denied(count, duration_ns);
    if (!strcmp(mode, "bulk") && argc == 7 && (!strcmp(argv[6], "down") || !strcmp(argv[6], "up")))
        return run_bulk(count, duration_ns, argv[6][0] == 'u');
    usage();
}
