/* The client with a fixed rate: a request is sent when it is due, whatever became of those before it.
 *
 * Latency is counted from when the request was due. A closed loop, and one that counts from the send, leave out what
 * waited behind a slow answer ("coordinated omission").
 */
#include "load.h"

#include <sys/prctl.h>
#include <time.h>

struct flow {
    int fd;
    int is_full;       /* its send buffer is, so EPOLLOUT is awaited */
    size_t owed;       /* bytes of requests that are due and not sent yet */
    size_t got;        /* bytes of the answer that is under way */
    uint64_t answered; /* requests: they are answered in order, and so number n of flow i is request i + n * conns */
};

static struct flow flows[MAX_SLOTS];
static uint64_t begin_ns, answered, *samples;
static double interval_ns;

static uint64_t due_ns(uint64_t request)
{
    return begin_ns + (uint64_t)((double)request * interval_ns);
}

static void flush_flow(int epoll, struct flow *flow)
{
    while (flow->owed) {
        ssize_t n = send(flow->fd, buffer, flow->owed < sizeof buffer ? flow->owed : sizeof buffer, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            die("a request could not be sent: %s", strerror(errno));
        if (n < 0)
            break;
        flow->owed -= (size_t)n;
    }
    int is_full = flow->owed > 0;
    if (is_full != flow->is_full)
        watch(epoll, EPOLL_CTL_MOD, flow->fd, EPOLLIN | (is_full ? EPOLLOUT : 0u), (uint64_t)(flow - flows));
    flow->is_full = is_full;
}

static void take_answers(struct flow *flow, int conns, size_t size)
{
    static char answers[BULK_BYTES];
    ssize_t n = recv(flow->fd, answers, sizeof answers, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        die("a connection ended in the middle of a round trip: %s", n ? strerror(errno) : "FIN");
    uint64_t now = now_ns();
    for (flow->got += (size_t)n; flow->got >= size; flow->got -= size) {
        uint64_t request = (uint64_t)(flow - flows) + flow->answered++ * (uint64_t)conns;
        samples[answered++] = now - due_ns(request);
    }
}

/* epoll_wait(2) knows only milliseconds, and many requests are due in one. */
static int wait_until_due(int epoll, struct epoll_event *events, uint64_t until_ns)
{
    uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    int n = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);
    if (n < 0 && errno != EINTR)
        die("epoll_pwait2: %s", strerror(errno));
    return n < 0 ? 0 : n;
}

static void write_samples(const char *name)
{
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(samples, sizeof *samples, answered, file) != answered || fclose(file))
        die("%s: %s", name, strerror(errno));
}

int run_open(int conns, double seconds, int size, int rate, const char *samples_file)
{
    struct epoll_event events[EVENTS];
    uint64_t total = (uint64_t)(seconds * rate) + 1, next = 0;
    if (total > MAX_SAMPLES)
        usage();
    int epoll = new_epoll();
    samples = malloc(total * sizeof *samples);
    if (!samples)
        die("malloc: %s", strerror(errno));
    memset(samples, 0xff, total * sizeof *samples); /* no page fault meanwhile */
    prctl(PR_SET_TIMERSLACK, 1ul); /* or every wake-up may be 50 us late */
    for (int i = 0; i < conns; i++) {
        flows[i].fd = dial_now();
        watch(epoll, EPOLL_CTL_ADD, flows[i].fd, EPOLLIN, (uint64_t)i);
    }
    interval_ns = 1e9 / rate;
    begin_ns = now_ns();
    while (answered < total) {
        for (uint64_t now = now_ns(); next < total && due_ns(next) <= now; next++) {
            struct flow *flow = &flows[next % (uint64_t)conns];
            flow->owed += (size_t)size;
            flush_flow(epoll, flow);
        }
        uint64_t until = next < total ? due_ns(next) : due_ns(total) + GRACE_NS;
        if (next == total && now_ns() > until)
            die("%lu of %lu requests have no answer after 5 s", (unsigned long)(total - answered), (unsigned long)total);
        int n = wait_until_due(epoll, events, until);
        for (int i = 0; i < n; i++) {
            struct flow *flow = &flows[events[i].data.u64];
            if (events[i].events & EPOLLOUT)
                flush_flow(epoll, flow);
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                take_answers(flow, conns, (size_t)size);
        }
    }
    uint64_t elapsed = now_ns() - begin_ns;
    write_samples(samples_file);
    printf("{\"ops\": %lu, \"seconds\": %.6f, \"errors\": 0}\n", (unsigned long)answered, (double)elapsed / 1e9);
    return 0;
}
