// A line between two network namespaces: one TUN device in each, and per direction random loss, then a drop-tail queue
// that is drained at a fixed rate, then a constant delay. For kernels with and without netem, the same everywhere.
//
//   line_router DELAY_MS RATE_MBIT LOSS_PERCENT QUEUE_BYTES SEED DEVICE NETNS_A NETNS_B
//
// Prints "ready" when both devices are there. On SIGTERM it prints what each direction carried and lost, and ends.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { SLOT_BYTES = 2048, BATCH = 64, TICK_NS = 200000, QUIET_NS = 2000000 };

struct packet {
    uint64_t due_ns;
    uint32_t length;
    unsigned char data[SLOT_BYTES - 12];
};

// Departures keep the order of arrivals, so a ring is ordered by time.
struct direction {
    int in, out;
    struct packet *ring;
    uint32_t head, tail, slots;
    uint64_t drained_ns, random;
    uint64_t carried, carried_bytes, lost, dropped, failed;
};

static volatile sig_atomic_t ended;
static void on_signal(int number) { (void)number; ended = 1; }

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double draw(struct direction *line) {  // xorshift64*
    line->random ^= line->random >> 12;
    line->random ^= line->random << 25;
    line->random ^= line->random >> 27;
    return (double)((line->random * 2685821657736338717ull) >> 11) / 9007199254740992.0;
}

static int open_tun(const char *netns, const char *device) {
    char path[300];
    struct ifreq request;
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = open(path, O_RDONLY | O_CLOEXEC);
    if (home < 0 || there < 0) fail(path);
    if (setns(there, CLONE_NEWNET)) fail("setns");
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tun < 0) fail("/dev/net/tun");
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, device, IFNAMSIZ - 1);
    if (ioctl(tun, TUNSETIFF, &request)) fail("TUNSETIFF");
    if (setns(home, CLONE_NEWNET)) fail("setns back");
    close(there);
    close(home);
    return tun;
}

int main(int count, char **words) {
    if (count != 9) return 2;
    double delay_ms = atof(words[1]), rate_mbit = atof(words[2]), loss = atof(words[3]) / 100;
    uint64_t queue_bytes = strtoull(words[4], NULL, 10), seed = strtoull(words[5], NULL, 10);
    double ns_per_byte = 8000.0 / rate_mbit;
    uint64_t delay_ns = (uint64_t)(delay_ms * 1e6);
    struct direction lines[2];
    memset(lines, 0, sizeof lines);
    lines[0].in = lines[1].out = open_tun(words[7], words[6]);
    lines[1].in = lines[0].out = open_tun(words[8], words[6]);
    for (int i = 0; i < 2; i++) {
        // Room for all that is queued and on its way, in small packets too, up to a sane bound.
        double most_bytes = queue_bytes + delay_ms * 125 * rate_mbit;
        lines[i].slots = 4096;
        while (lines[i].slots < most_bytes / 60 && lines[i].slots < (1u << 18)) lines[i].slots <<= 1;
        lines[i].ring = calloc(lines[i].slots, sizeof(struct packet));
        if (!lines[i].ring) fail("calloc");
        lines[i].random = (seed * 2 + i + 1) * 0x9E3779B97F4A7C15ull | 1;
        for (int k = 0; k < 8; k++) draw(&lines[i]);
    }
    prctl(PR_SET_TIMERSLACK, 1UL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    // Signals arrive only inside ppoll.
    sigset_t blocked, before;
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    puts("ready");
    fflush(stdout);
    uint64_t seen_ns = 0;
    while (!ended) {
        uint64_t now = now_ns(), next = UINT64_MAX;
        int more = 0;
        for (int i = 0; i < 2; i++) {
            struct direction *line = &lines[i];
            for (int k = 0; k < BATCH; k++) {
                unsigned char nowhere[SLOT_BYTES];
                int full = line->head - line->tail == line->slots;
                struct packet *slot = &line->ring[line->head & (line->slots - 1)];
                ssize_t length = read(line->in, full ? nowhere : slot->data, sizeof slot->data);
                if (length <= 0) break;
                if (k == BATCH - 1) more = 1;
                seen_ns = now = now_ns();
                if (loss > 0 && draw(line) < loss) { line->lost++; continue; }
                if (line->drained_ns < now) line->drained_ns = now;
                uint64_t queued = (uint64_t)((line->drained_ns - now) / ns_per_byte);
                if (full || queued + length > queue_bytes) { line->dropped++; continue; }
                line->drained_ns += (uint64_t)(length * ns_per_byte);
                slot->due_ns = line->drained_ns + delay_ns;
                slot->length = length;
                line->head++;
            }
            for (int k = 0; k < BATCH && line->tail != line->head; k++) {
                struct packet *slot = &line->ring[line->tail & (line->slots - 1)];
                if (slot->due_ns > now) {
                    if (slot->due_ns < next) next = slot->due_ns;
                    break;
                }
                if (write(line->out, slot->data, slot->length) == (ssize_t)slot->length) {
                    line->carried++;
                    line->carried_bytes += slot->length;
                } else {
                    line->failed++;
                }
                line->tail++;
                if (k == BATCH - 1) more = 1;
            }
        }
        now = now_ns();
        struct pollfd sides[2] = {{.fd = lines[0].in, .events = POLLIN}, {.fd = lines[1].in, .events = POLLIN}};
        uint64_t wait_ns = more ? 0 : next == UINT64_MAX ? 1000000000ull : next > now ? next - now : 0;
        struct timespec wait = {.tv_sec = wait_ns / 1000000000ull, .tv_nsec = wait_ns % 1000000000ull};
        if (wait_ns && now - seen_ns < QUIET_NS) {
            // While packets flow, look every tick: a wake-up for each packet costs ten times the processor.
            wait.tv_sec = 0;
            wait.tv_nsec = wait_ns < TICK_NS ? wait_ns : TICK_NS;
            ppoll(NULL, 0, &wait, &before);
        } else {
            ppoll(sides, 2, &wait, &before);
        }
    }
    for (int i = 0; i < 2; i++)
        printf("%s: %llu packets, %llu bytes, %llu lost, %llu dropped by the queue, %llu failed\n", i ? "b to a" : "a to b",
               (unsigned long long)lines[i].carried, (unsigned long long)lines[i].carried_bytes,
               (unsigned long long)lines[i].lost, (unsigned long long)lines[i].dropped, (unsigned long long)lines[i].failed);
    return 0;
}
