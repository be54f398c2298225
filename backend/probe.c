/* SPDX-License-Identifier: MIT
 *
 * What this kernel can do, found out by letting it do it.
 *
 * Why not by version: distributions port features back, filters take them away,
 * and some were there for releases before they worked. So ringpoll_get_probe() makes
 * a small ring, or a few, and lets each feature do its work once on a
 * socketpair, a pipe or a timer. Each test ends what it began; nothing outlives
 * the call, no fd is left, and no test waits longer than PATIENCE.
 *
 * A test answers 0, or the negative errno that tells why not: the kernel's own
 * where it gave one, else
 *   EOPNOTSUPP  the kernel does not mark it as there (features word, opcodes)
 *   EPROTO      it is said to be there, and did something else
 *   ETIME       it is said to be there, and did nothing
 *
 * One trace is left: an ended ring interrupts the thread that made it, some
 * milliseconds later and without a signal (the kernel's own clean-up work), so
 * its next epoll_wait or two may answer EINTR. Hence a set never probes so; it
 * takes what the ladder and the features word give (ring.c).
 *
 * A masked feature is a feature the kernel lacks. Masks close over what depends
 * on them: without single-issuer there is no defer, without buf-ring no
 * multishot receive.
 */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "abi.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"
#include "sys.h"

#define PATIENCE_MS 1000

/* ------------------------------------------------------- names and masks */

#define URING RINGPOLL_FEATURE_URING
#define V(major, minor) ((major)*100u + (minor))

/* In the order of the bits. `since`: the release that the as-… words count by;
 * SQPOLL counts from where it serves unregistered files. */
static const struct {
    const char *name;
    unsigned since;
    uint64_t needs;
} table[RINGPOLL_FEATURE_COUNT] = {
    {"uring", V(5, 1), 0},
    {"defer", V(6, 1), URING | RINGPOLL_FEATURE_SINGLE_ISSUER},
    {"single-issuer", V(6, 0), URING},
    {"coop", V(5, 19), URING},
    {"taskrun-flag", V(5, 19), URING},
    {"submit-all", V(5, 18), URING},
    {"cqsize", V(5, 5), URING},
    {"clamp", V(5, 6), URING},
    {"sqpoll", V(5, 11), URING},
    {"no-sqarray", V(6, 6), URING},
    {"ext-arg", V(5, 11), URING},
    {"nodrop", V(5, 5), URING},
    {"registered-ring", V(5, 18), URING},
    {"multishot-poll", V(5, 13), URING},
    {"poll-update", V(5, 13), URING | RINGPOLL_FEATURE_MULTISHOT_POLL},
    {"cqe-skip", V(5, 17), URING},
    {"cancel-fd", V(5, 19), URING},
    {"sync-cancel", V(6, 0), URING},
    {"multishot-accept", V(5, 19), URING},
    {"buf-ring", V(5, 19), URING},
    {"multishot-recv", V(6, 0), URING | RINGPOLL_FEATURE_BUF_RING},
    {"sparse-files", V(5, 19), URING},
    {"send-zc", V(6, 2), URING},
    {"no-iowait", V(6, 15), URING},
    {"abs-timer", V(6, 12), URING | RINGPOLL_FEATURE_EXT_ARG},
    {"read-multishot", V(6, 7), URING | RINGPOLL_FEATURE_BUF_RING},
    {"recv-bundle", V(6, 10), URING | RINGPOLL_FEATURE_BUF_RING},
    {"napi", V(6, 9), URING},
    {"resize", V(6, 13), URING | RINGPOLL_FEATURE_DEFER},
    {"recv-end", V(7, 0), URING | RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV},
};

static const struct {
    const char *word;
    unsigned version;
} releases[] = {{"as-6.1", V(6, 1)}, {"as-5.19", V(5, 19)}, {"as-5.13", V(5, 13)}, {"as-5.10", V(5, 10)}};

const char *ringpoll_feature_name(unsigned index)
{
    return index < RINGPOLL_FEATURE_COUNT ? table[index].name : NULL;
}

static bool word_is(const char *text, const char *word, size_t length)
{
    return strlen(text) == length && memcmp(text, word, length) == 0;
}

/* The bits of one word, 0 when it is none. */
static uint64_t mask_of_word(const char *word, size_t length)
{
    for (unsigned i = 0; i < sizeof(releases) / sizeof(releases[0]); i++) {
        if (!word_is(releases[i].word, word, length))
            continue;
        uint64_t mask = 0;
        for (unsigned bit = 0; bit < RINGPOLL_FEATURE_COUNT; bit++)
            if (table[bit].since > releases[i].version)
                mask |= UINT64_C(1) << bit;
        return mask;
    }
    if (length > 3 && memcmp(word, "no-", 3) == 0)
        for (unsigned bit = 0; bit < RINGPOLL_FEATURE_COUNT; bit++)
            if (word_is(table[bit].name, word + 3, length - 3))
                return UINT64_C(1) << bit;
    return 0;
}

/* Stops at the first wrong word, or goes on past it. */
static const char *parse_mask(const char *text, bool lenient, uint64_t *ret_mask, size_t *ret_bad_length)
{
    uint64_t mask = 0;
    const char *word = text;
    while (*text) {
        size_t length = strcspn(word, ",");
        uint64_t bits = mask_of_word(word, length);
        if (bits == 0 && !lenient) {
            *ret_bad_length = length;
            return word;
        }
        mask |= bits;
        if (word[length] == '\0')
            break;
        word += length + 1;
    }
    *ret_mask = mask;
    return NULL;
}

int ringpoll_mask_parse(const char *text, uint64_t *ret_mask, const char **ret_bad_word, size_t *ret_bad_length)
{
    size_t bad_length = 0;
    const char *bad = parse_mask(text, false, ret_mask, &bad_length);
    if (!bad)
        return 0;
    if (ret_bad_word)
        *ret_bad_word = bad;
    if (ret_bad_length)
        *ret_bad_length = bad_length;
    return -EINVAL;
}

uint64_t rp_probe_masked(void)
{
    /* The bit above all features says that it was read. Two threads that come
     * first both read, and find the same. */
    static uint64_t cached;
    const uint64_t known = UINT64_C(1) << 63;
    uint64_t mask = __atomic_load_n(&cached, __ATOMIC_RELAXED);
    if (!(mask & known)) {
        const char *text = secure_getenv("RINGPOLL_MASK");
        size_t ignored;
        mask = 0;
        if (text)
            parse_mask(text, true, &mask, &ignored);
        mask |= known;
        __atomic_store_n(&cached, mask, __ATOMIC_RELAXED);
    }
    return mask & ~known;
}

uint64_t rp_probe_close_over(uint64_t features, uint64_t masked)
{
    uint64_t all = (UINT64_C(1) << RINGPOLL_FEATURE_COUNT) - 1;
    features &= all & ~masked;
    for (uint64_t before = 0; before != features;) {
        before = features;
        for (unsigned bit = 0; bit < RINGPOLL_FEATURE_COUNT; bit++)
            if ((features & table[bit].needs) != table[bit].needs)
                features &= ~(UINT64_C(1) << bit);
        /* The flag is only valid beside one of these two. */
        if (!(features & (RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_COOP)))
            features &= ~RINGPOLL_FEATURE_TASKRUN_FLAG;
    }
    return features;
}

/* ------------------------------------------------------------------- knobs */

/* The file's text from `key` on (from its begin when NULL), as a number; -1: no
 * such file or key. Files in /proc that we read are short. */
static int number_in_file(const char *path, const char *key)
{
    char text[4096];
    int fd = (int)rp_sys_call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return -1;
    long length = rp_sys_read(fd, text, sizeof(text) - 1);
    rp_sys_close(fd);
    if (length <= 0)
        return -1;
    text[length] = '\0';
    const char *at = text;
    if (key) {
        at = strstr(text, key);
        if (!at)
            return -1;
        at += strlen(key);
    }
    while (*at == ' ' || *at == '\t')
        at++;
    return *at >= '0' && *at <= '9' ? atoi(at) : -1;
}

#ifndef RINGPOLL_WITHOUT_URING
static bool release_has_io_uring(void)
{
    struct utsname name;
    if (rp_sys_call(SYS_uname, (long)&name, 0, 0, 0, 0, 0) < 0)
        return false;
    unsigned long major = strtoul(name.release, NULL, 10);
    const char *dot = strchr(name.release, '.');
    unsigned long minor = dot ? strtoul(dot + 1, NULL, 10) : 0;
    return V(major, minor) >= V(5, 1);
}
#endif

uint32_t rp_probe_knob(int error)
{
    /* The sysctl came with 6.6; its file is a proof that io_uring is built in. */
    static const char sysctl[] = "/proc/sys/kernel/io_uring_disabled";
    switch (error) {
    case 0:
        return RINGPOLL_KNOB_NONE;
    case -EPERM:
        /* 1: only CAP_SYS_ADMIN and the group of kernel.io_uring_group; 2: nobody. */
        return number_in_file(sysctl, NULL) > 0 ? RINGPOLL_KNOB_SYSCTL : RINGPOLL_KNOB_SECCOMP;
    case -EACCES: /* a security module: of the same kind as a filter */
        return RINGPOLL_KNOB_SECCOMP;
    case -ENOMEM:
    case -EAGAIN:
        return RINGPOLL_KNOB_MEMLOCK;
    case -EMFILE:
    case -ENFILE:
        return RINGPOLL_KNOB_FILES;
    case -ENOSYS:
#ifdef RINGPOLL_WITHOUT_URING
        return RINGPOLL_KNOB_BUILD;
#else
        /* A filter may say this as well; without one it is the kernel. With one
         * it is the filter if the kernel should have known better. */
        if (number_in_file("/proc/self/status", "\nSeccomp:") == 2 &&
            (number_in_file(sysctl, NULL) >= 0 || release_has_io_uring()))
            return RINGPOLL_KNOB_SECCOMP;
        return RINGPOLL_KNOB_KERNEL;
#endif
    default:
        return RINGPOLL_KNOB_KERNEL;
    }
}

const char *ringpoll_knob_text(uint32_t knob)
{
    switch (knob) {
    case RINGPOLL_KNOB_NONE:
        return "nothing";
    case RINGPOLL_KNOB_KERNEL:
        return "the kernel is older, or built without it";
    case RINGPOLL_KNOB_SYSCTL:
        return "the sysctl kernel.io_uring_disabled";
    case RINGPOLL_KNOB_SECCOMP:
        return "a seccomp filter or security module";
    case RINGPOLL_KNOB_MEMLOCK:
        return "memory, or the limit RLIMIT_MEMLOCK (ulimit -l)";
    case RINGPOLL_KNOB_MASK:
        return "the mask RINGPOLL_MASK";
    case RINGPOLL_KNOB_FILES:
        return "the limit RLIMIT_NOFILE (ulimit -n)";
    case RINGPOLL_KNOB_BUILD:
        return "the library was built with --with-uring=no";
    default:
        return "unknown";
    }
}

/* -------------------------------------------------------------- live tests */

#define GROUP 7u       /* of provided buffers */
#define BUFFERS 4u     /* in it */
#define BUFFER_BYTES 64u
#define TEST 0x7e57u   /* user_data of what is tested … */
#define OTHER 0x07e8u  /* … and of what helps */

/* A bench: one ring, one connected pair, one page of provided buffers. */
struct bench {
    struct rp_ring own, *ring; /* `ring` is `own`, or somebody's whose queues are empty */
    int pair[2];
    void *page; /* the buffer ring, then the buffers; NULL: not asked for */
    uint32_t dropped;
};

static const struct timespec patience = {PATIENCE_MS / 1000, PATIENCE_MS % 1000 * 1000000};

static int make_pair(int pair[2])
{
    return (int)rp_sys_call(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, (long)pair, 0, 0);
}

static int bench_init(struct bench *bench)
{
    struct rp_ring_options options = {.sq_entries = 8, .cq_entries = 16};
    options.features = (UINT64_C(1) << RINGPOLL_FEATURE_COUNT) - 1;
    memset(bench, 0, sizeof(*bench));
    bench->ring = &bench->own;
    bench->pair[0] = bench->pair[1] = -1;
    int result = rp_ring_init(bench->ring, &options);
    if (result < 0)
        return result;
    result = make_pair(bench->pair);
    if (result < 0)
        rp_ring_fini(bench->ring);
    return result;
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        rp_sys_close(fd);
}

/* One completion into *cqe, waiting for it; -ETIME when none comes. */
static int await(struct bench *bench, struct rp_cqe *cqe)
{
    uint64_t deadline_ns = rp_sys_now_ns() + (uint64_t)PATIENCE_MS * 1000000u;
    for (;;) {
        struct rp_cqe *head = rp_ring_peek(bench->ring);
        if (head) {
            *cqe = *head;
            rp_ring_seen(bench->ring);
            return 0;
        }
        if (rp_sys_now_ns() > deadline_ns)
            return -ETIME;
        int result;
        if (bench->ring->features & RINGPOLL_FEATURE_EXT_ARG) {
            result = rp_ring_enter(bench->ring, 1, &patience, NULL);
            if (result == -ETIME && rp_ring_peek(bench->ring))
                result = 0; /* it came with the last tick */
        } else { /* no timed wait before 5.11: look, and sleep a little in between */
            static const struct timespec nap = {0, 1000000};
            result = rp_ring_enter(bench->ring, 0, NULL, NULL);
            if (!rp_ring_peek(bench->ring))
                rp_sys_poll(NULL, 0, &nap);
        }
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY)
            return result;
    }
}

/* The next completion must be this one. */
static int expect(struct bench *bench, uint64_t user_data, struct rp_cqe *ret_cqe)
{
    struct rp_cqe cqe;
    int result = await(bench, &cqe);
    if (result < 0)
        return result;
    if (cqe.user_data != user_data)
        return -EPROTO;
    *ret_cqe = cqe;
    return 0;
}

/* A cancel of everything, by user_data since that is as old as cancel itself, then
 * until its own completion and the target's end have come. */
static void cancel_all(struct bench *bench)
{
    for (unsigned round = 0; round < 8 && bench->ring->fd >= 0; round++) {
        struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
        if (!sqe)
            return;
        sqe->opcode = RP_IORING_OP_ASYNC_CANCEL;
        sqe->fd = -1;
        sqe->addr = TEST;
        sqe->user_data = OTHER;
        struct rp_cqe cqe;
        do {
            if (await(bench, &cqe) < 0)
                return;
        } while (cqe.user_data != OTHER);
        if (cqe.res == -ENOENT)
            return;
    }
}

/* Nothing may be in flight when the ring is unmapped. */
static void bench_fini(struct bench *bench)
{
    cancel_all(bench);
    close_if_open(bench->pair[0]);
    close_if_open(bench->pair[1]);
    rp_ring_fini(bench->ring);
    if (bench->page)
        rp_sys_pages_free(bench->page, 4096);
}

static struct rp_sqe *poll_sqe(struct bench *bench, unsigned events, unsigned flags)
{
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    if (!sqe)
        return NULL;
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = bench->pair[0];
    sqe->poll32_events = rp_poll_word(events);
    sqe->len = flags;
    sqe->user_data = TEST;
    return sqe;
}

static int send_byte(struct bench *bench)
{
    long result = rp_sys_write(bench->pair[1], "x", 1);
    return result == 1 ? 0 : result < 0 ? (int)result : -EPROTO;
}

static int reached(const struct rp_cqe *cqe, bool ok)
{
    return ok ? 0 : cqe->res < 0 ? cqe->res : -EPROTO;
}

static int test_ext_arg(struct bench *bench)
{
    if (!(bench->ring->kernel_features & RP_FEAT_EXT_ARG))
        return -EOPNOTSUPP;
    static const struct timespec instant = {0, 1};
    int result = rp_ring_enter(bench->ring, 1, &instant, NULL);
    return result == -ETIME || result == -EINTR ? 0 : result < 0 ? result : -EPROTO;
}

static int test_registered_ring(struct bench *bench)
{
    struct rp_rsrc_update update = {.offset = ~0u, .data = (uint64_t)bench->ring->fd};
    int result = rp_sys->uring_register(bench->ring->fd, RP_REGISTER_RING_FDS, &update, 1);
    if (result < 0)
        return result;
    if (result != 1)
        return -EPROTO;
    result = rp_sys->uring_enter((int)update.offset, 0, 0, RP_ENTER_GETEVENTS | RP_ENTER_REGISTERED_RING, NULL, 0);
    update.data = 0;
    rp_sys->uring_register(bench->ring->fd, RP_UNREGISTER_RING_FDS, &update, 1);
    return result;
}

static int test_multishot_poll(struct bench *bench)
{
    struct rp_cqe cqe;
    if (!poll_sqe(bench, POLLIN, RP_POLL_ADD_MULTI))
        return -EPROTO;
    int result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    for (unsigned turn = 0; result >= 0 && turn < 2; turn++) {
        result = send_byte(bench);
        if (result == 0)
            result = expect(bench, TEST, &cqe);
        if (result == 0)
            result = reached(&cqe, cqe.res > 0 && (cqe.res & POLLIN) && (cqe.flags & RP_CQE_F_MORE));
    }
    return result;
}

/* A poll for IN only is told to want OUT too, which is true: it has to say so. */
static int test_poll_update(struct bench *bench)
{
    struct rp_cqe cqe;
    if (!poll_sqe(bench, POLLIN, RP_POLL_ADD_MULTI))
        return -EPROTO;
    int result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    if (result < 0)
        return result;
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = RP_IORING_OP_POLL_REMOVE;
    sqe->fd = -1;
    sqe->addr = TEST;
    sqe->len = RP_POLL_UPDATE_EVENTS | RP_POLL_ADD_MULTI;
    sqe->poll32_events = rp_poll_word(POLLIN | POLLOUT);
    sqe->user_data = OTHER;
    bool updated = false, fired = false;
    while (!updated || !fired) {
        result = await(bench, &cqe);
        if (result < 0)
            return result;
        if (cqe.user_data == OTHER && cqe.res == 0)
            updated = true;
        else if (cqe.user_data == TEST && cqe.res > 0 && (cqe.res & POLLOUT) && (cqe.flags & RP_CQE_F_MORE))
            fired = true;
        else
            return reached(&cqe, false);
    }
    return 0;
}

static int test_cqe_skip(struct bench *bench)
{
    if (!(bench->ring->kernel_features & RP_FEAT_CQE_SKIP))
        return -EOPNOTSUPP;
    struct rp_cqe cqe;
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = RP_IORING_OP_NOP;
    sqe->flags = RP_SQE_CQE_SKIP_SUCCESS;
    sqe->user_data = OTHER;
    sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = RP_IORING_OP_NOP;
    sqe->user_data = TEST;
    int result = expect(bench, TEST, &cqe);
    return result < 0 ? result : reached(&cqe, cqe.res == 0);
}

/* Cancels an armed poll: at once by its user_data, or in the queue by its fd. */
static int test_cancel(struct bench *bench, bool synchronous)
{
    struct rp_cqe cqe;
    if (!poll_sqe(bench, POLLIN, 0))
        return -EPROTO;
    int result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    if (result < 0)
        return result;
    if (synchronous) {
        struct rp_sync_cancel_reg reg;
        memset(&reg, 0, sizeof(reg));
        reg.addr = TEST;
        reg.fd = -1;
        reg.timeout.tv_sec = PATIENCE_MS / 1000;
        result = rp_sys->uring_register(bench->ring->fd, RP_REGISTER_SYNC_CANCEL, &reg, 1);
        if (result < 0)
            return result;
        result = expect(bench, TEST, &cqe);
        return result < 0 ? result : cqe.res == -ECANCELED ? 0 : reached(&cqe, false);
    }
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = RP_IORING_OP_ASYNC_CANCEL;
    sqe->fd = bench->pair[0];
    sqe->cancel_flags = RP_ASYNC_CANCEL_FD;
    sqe->user_data = OTHER;
    bool canceled = false, confirmed = false;
    while (!canceled || !confirmed) {
        result = await(bench, &cqe);
        if (result < 0)
            return result;
        if (cqe.user_data == OTHER && cqe.res >= 0)
            confirmed = true;
        else if (cqe.user_data == TEST && cqe.res == -ECANCELED)
            canceled = true;
        else
            return cqe.user_data == OTHER ? reached(&cqe, false) : -EPROTO;
    }
    return 0;
}

static int test_cancel_fd(struct bench *bench)
{
    return test_cancel(bench, false);
}

static int test_sync_cancel(struct bench *bench)
{
    return test_cancel(bench, true);
}

/* Two connections to a nameless (autobound) local listener, one SQE. */
static int test_multishot_accept(struct bench *bench)
{
    struct {
        uint16_t family;
        char name[108];
    } address = {AF_UNIX, {0}};
    unsigned length = sizeof(address.family);
    int clients[2] = {-1, -1};
    int listener = (int)rp_sys_call(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, 0, 0, 0);
    if (listener < 0)
        return listener;
    int result = (int)rp_sys_call(SYS_bind, listener, (long)&address, (long)length, 0, 0, 0);
    if (result == 0)
        result = (int)rp_sys_call(SYS_listen, listener, 4, 0, 0, 0, 0);
    length = sizeof(address);
    if (result == 0)
        result = (int)rp_sys_call(SYS_getsockname, listener, (long)&address, (long)&length, 0, 0, 0);
    if (result == 0) {
        struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
        sqe->opcode = RP_IORING_OP_ACCEPT;
        sqe->fd = listener;
        sqe->ioprio = RP_ACCEPT_MULTISHOT;
        sqe->accept_flags = SOCK_CLOEXEC;
        sqe->user_data = TEST;
        result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    }
    for (unsigned i = 0; result >= 0 && i < 2; i++) {
        struct rp_cqe cqe;
        clients[i] = (int)rp_sys_call(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, 0, 0, 0);
        result = clients[i] < 0 ? clients[i]
                                : (int)rp_sys_call(SYS_connect, clients[i], (long)&address, (long)length, 0, 0, 0);
        if (result == 0)
            result = expect(bench, TEST, &cqe);
        if (result == 0) {
            result = reached(&cqe, cqe.res >= 0 && (cqe.flags & RP_CQE_F_MORE));
            close_if_open(cqe.res);
        }
    }
    /* The accept pins the listener until bench_fini() has cancelled it. */
    close_if_open(clients[0]);
    close_if_open(clients[1]);
    rp_sys_close(listener);
    return result < 0 ? result : 0;
}

static int provide_buffers(struct bench *bench)
{
    bench->page = rp_sys_pages(4096);
    if (!bench->page)
        return -ENOMEM;
    struct rp_buf_reg reg;
    memset(&reg, 0, sizeof(reg));
    reg.ring_addr = (uint64_t)(uintptr_t)bench->page;
    reg.ring_entries = BUFFERS;
    reg.bgid = GROUP;
    int result = rp_ring_register(bench->ring, RP_REGISTER_PBUF_RING, &reg, 1);
    if (result < 0)
        return result;
    struct rp_buf *entries = bench->page;
    for (uint16_t i = 0; i < BUFFERS; i++) {
        entries[i].addr = (uint64_t)(uintptr_t)bench->page + 1024u + i * BUFFER_BYTES;
        entries[i].len = BUFFER_BYTES;
        entries[i].bid = i;
    }
    __atomic_store_n(&entries[0].tail, (uint16_t)BUFFERS, __ATOMIC_RELEASE);
    return 0;
}

static int test_buf_ring(struct bench *bench)
{
    return provide_buffers(bench);
}

/* One SQE, a byte at a time: a completion with a buffer and MORE for each of
 * BUFFERS, then ENOBUFS without MORE and the byte still in the file. */
static int run_multishot(struct bench *bench, enum rp_opcode opcode, int fd, int feed)
{
    struct rp_cqe cqe;
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = fd;
    sqe->flags = RP_SQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    if (opcode == RP_IORING_OP_RECV)
        sqe->ioprio = RP_RECV_MULTISHOT;
    else
        sqe->off = ~UINT64_C(0);
    sqe->user_data = TEST;
    int result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    for (unsigned i = 0; result >= 0 && i <= BUFFERS; i++) {
        char byte = (char)('a' + i);
        bool last = i == BUFFERS;
        long written = rp_sys_write(feed, &byte, 1);
        if (written != 1)
            return written < 0 ? (int)written : -EPROTO;
        result = expect(bench, TEST, &cqe);
        if (result < 0)
            break;
        if (last)
            return cqe.res == -ENOBUFS && !(cqe.flags & RP_CQE_F_MORE) ? 0 : reached(&cqe, false);
        unsigned bid = cqe.flags >> RP_CQE_BUFFER_SHIFT;
        bool ok = cqe.res == 1 && (cqe.flags & RP_CQE_F_BUFFER) && (cqe.flags & RP_CQE_F_MORE) && bid < BUFFERS &&
                  ((const char *)bench->page)[1024u + bid * BUFFER_BYTES] == byte;
        result = reached(&cqe, ok);
    }
    return result;
}

static int test_multishot_recv(struct bench *bench)
{
    int result = provide_buffers(bench);
    if (result < 0)
        return result;
    result = run_multishot(bench, RP_IORING_OP_RECV, bench->pair[0], bench->pair[1]);
    if (result < 0)
        return result;
    char byte = 0; /* ENOBUFS must have left it */
    return rp_sys_read(bench->pair[0], &byte, 1) == 1 && byte == 'a' + (char)BUFFERS ? 0 : -EPROTO;
}

/* Bytes, and their end right behind them, before the ring runs: both must come. Until
 * the fix of CVE-2026-23473 (in 7.0, and in stable branches) the second wake-up of an
 * AF_UNIX socket is lost, and with it the end; on TCP the bytes tell of more. */
static int test_recv_end(struct bench *bench)
{
    if (!(bench->ring->features & RINGPOLL_FEATURE_DEFER))
        return -EOPNOTSUPP; /* nobody asks, see stream.h */
    int result = provide_buffers(bench);
    if (result < 0)
        return result;
    struct rp_cqe cqe;
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    if (!sqe)
        return -EBUSY;
    sqe->opcode = RP_IORING_OP_RECV;
    sqe->fd = bench->pair[0];
    sqe->flags = RP_SQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    sqe->ioprio = RP_RECV_MULTISHOT;
    sqe->user_data = TEST;
    if ((result = rp_ring_enter(bench->ring, 0, NULL, NULL)) < 0 || (result = send_byte(bench)) < 0 ||
        (result = (int)rp_sys_call(SYS_shutdown, bench->pair[1], SHUT_WR, 0, 0, 0, 0)) < 0 ||
        (result = expect(bench, TEST, &cqe)) < 0)
        return result;
    if (cqe.res != 1)
        return reached(&cqe, false);
    /* What is lost would not come: all that is pending has run in the enter above. */
    if (!rp_ring_peek(bench->ring) && !rp_ring_wants_enter(bench->ring))
        return -EOPNOTSUPP;
    result = expect(bench, TEST, &cqe);
    return result < 0 ? result : reached(&cqe, cqe.res == 0 && !(cqe.flags & RP_CQE_F_MORE));
}

bool rp_probe_recv_end(struct rp_ring *ring)
{
    static int known; /* 0: not yet; the kernel stays the same */
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (answer == 0) {
        uint64_t enters = ring->enters, sqes = ring->sqes_submitted, cqes = ring->cqes_reaped;
        struct bench bench = {.ring = ring, .pair = {-1, -1}};
        int error = make_pair(bench.pair);
        error = error < 0 ? error : test_recv_end(&bench);
        answer = error == 0 ? 1 : -1;
        cancel_all(&bench);
        if (bench.page) {
            struct rp_buf_reg reg = {.bgid = GROUP};
            (void)rp_ring_register(ring, RP_UNREGISTER_PBUF_RING, &reg, 1);
            rp_sys_pages_free(bench.page, 4096);
        }
        close_if_open(bench.pair[0]);
        close_if_open(bench.pair[1]);
        ring->enters = enters; /* the program's are counted */
        ring->sqes_submitted = sqes;
        ring->cqes_reaped = cqes;
        if (error == 0 || error == -EOPNOTSUPP || error == -EPROTO) /* not for want of memory, say */
            __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer > 0;
}

static int test_read_multishot(struct bench *bench)
{
    int fds[2];
    int result = provide_buffers(bench);
    if (result < 0)
        return result;
    result = (int)rp_sys_call(SYS_pipe2, (long)fds, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0);
    if (result < 0)
        return result;
    result = run_multishot(bench, RP_IORING_OP_READ_MULTISHOT, fds[0], fds[1]);
    rp_sys_close(fds[0]);
    rp_sys_close(fds[1]);
    return result;
}

static int test_sparse_files(struct bench *bench)
{
    struct rp_rsrc_register reg;
    memset(&reg, 0, sizeof(reg));
    reg.nr = 4;
    reg.flags = RP_RSRC_REGISTER_SPARSE;
    int result = rp_sys->uring_register(bench->ring->fd, RP_REGISTER_FILES2, &reg, sizeof(reg));
    if (result < 0)
        return result;
    return rp_sys->uring_register(bench->ring->fd, RP_UNREGISTER_FILES, NULL, 0);
}

/* Over a connection to ourselves: bytes taken, and a notification that says how. */
static int test_send_zc(struct bench *bench)
{
    struct rp_probe probe;
    memset(&probe, 0, sizeof(probe));
    int result = rp_sys->uring_register(bench->ring->fd, RP_REGISTER_PROBE, &probe, RP_PROBE_OPS);
    if (result < 0)
        return result;
    if (probe.ops_len <= RP_IORING_OP_SENDMSG_ZC || !(probe.ops[RP_IORING_OP_SENDMSG_ZC].flags & RP_OP_SUPPORTED))
        return -EOPNOTSUPP;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    unsigned length = sizeof address;
    const long type = SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK; /* no listener, no second socket */
    int fd = (int)rp_sys_call(SYS_socket, AF_INET, type, 0, 0, 0, 0);
    if (fd < 0)
        return fd;
    if ((result = (int)rp_sys_call(SYS_bind, fd, (long)&address, sizeof address, 0, 0, 0)) < 0 ||
        (result = (int)rp_sys_call(SYS_getsockname, fd, (long)&address, (long)&length, 0, 0, 0)) < 0 ||
        (result = (int)rp_sys_call(SYS_connect, fd, (long)&address, sizeof address, 0, 0, 0)) < 0) {
        rp_sys_close(fd);
        return 0; /* no loopback here: it cannot be tried, and is there */
    }
    struct rp_cqe cqe;
    struct rp_sqe *sqe = rp_ring_get_sqe(bench->ring);
    sqe->opcode = RP_IORING_OP_SEND_ZC;
    sqe->fd = fd;
    sqe->ioprio = RP_SEND_ZC_REPORT_USAGE;
    sqe->addr = (uint64_t)(uintptr_t)"z";
    sqe->len = 1;
    sqe->op_flags = MSG_DONTWAIT;
    sqe->user_data = TEST;
    result = rp_ring_enter(bench->ring, 0, NULL, NULL);
    if (result >= 0 && (result = expect(bench, TEST, &cqe)) >= 0)
        result = reached(&cqe, cqe.res == 1 && (cqe.flags & RP_CQE_F_MORE));
    char byte;
    (void)rp_sys_read(fd, &byte, 1);
    if (result >= 0 && (result = expect(bench, TEST, &cqe)) >= 0)
        result = reached(&cqe, (cqe.flags & RP_CQE_F_NOTIF) && !(cqe.flags & RP_CQE_F_MORE));
    rp_sys_close(fd);
    return result;
}

static int test_no_iowait(struct bench *bench)
{
    if (!(bench->ring->kernel_features & RP_FEAT_NO_IOWAIT))
        return -EOPNOTSUPP;
    return rp_sys->uring_enter(bench->ring->fd, 0, 0, RP_ENTER_GETEVENTS | RP_ENTER_NO_IOWAIT, NULL, 0);
}

/* An hour by the clock that has long struck: over at once, where a relative
 * time would last. */
static int test_abs_timer(struct bench *bench)
{
    struct rp_timespec past = {0, 1};
    struct rp_getevents_arg arg = {.sigmask_sz = RP_SIGSET_BYTES, .ts = (uint64_t)(uintptr_t)&past};
    int result = rp_sys->uring_enter(bench->ring->fd, 0, 1,
                                     RP_ENTER_GETEVENTS | RP_ENTER_EXT_ARG | RP_ENTER_ABS_TIMER, &arg, sizeof(arg));
    return result == -ETIME || result == -EINTR ? 0 : result < 0 ? result : -EPROTO;
}

static int test_napi(struct bench *bench)
{
    struct rp_napi napi;
    memset(&napi, 0, sizeof(napi));
    napi.busy_poll_to_us = 1;
    int result = rp_sys->uring_register(bench->ring->fd, RP_REGISTER_NAPI, &napi, 1);
    if (result < 0)
        return result;
    memset(&napi, 0, sizeof(napi));
    return rp_sys->uring_register(bench->ring->fd, RP_UNREGISTER_NAPI, &napi, 1);
}

/* The mappings are stale from here on, and only unmapped: `ends`. */
static int test_resize(struct bench *bench)
{
    struct rp_params params;
    memset(&params, 0, sizeof(params));
    params.sq_entries = bench->ring->sq_entries;
    params.cq_entries = bench->ring->cq_entries * 2;
    params.flags = RP_SETUP_CQSIZE;
    return rp_sys->uring_register(bench->ring->fd, RP_REGISTER_RESIZE_RINGS, &params, 1);
}

static int test_nodrop(struct bench *bench)
{
    return bench->ring->kernel_features & RP_FEAT_NODROP ? 0 : -EOPNOTSUPP;
}

static int test_recv_bundle(struct bench *bench)
{
    return bench->ring->kernel_features & RP_FEAT_RECVSEND_BUNDLE ? 0 : -EOPNOTSUPP;
}

/* Each on a bench of its own: what a test leaves behind on a kernel that gets
 * it wrong must not answer for the next. */
static const struct {
    uint64_t feature;
    int (*run)(struct bench *bench);
    bool ends; /* the ring's memory cannot be looked at afterwards */
} tests[] = {
    {RINGPOLL_FEATURE_EXT_ARG, test_ext_arg, false},
    {RINGPOLL_FEATURE_NODROP, test_nodrop, false},
    {RINGPOLL_FEATURE_REGISTERED_RING, test_registered_ring, false},
    {RINGPOLL_FEATURE_MULTISHOT_POLL, test_multishot_poll, false},
    {RINGPOLL_FEATURE_POLL_UPDATE, test_poll_update, false},
    {RINGPOLL_FEATURE_CQE_SKIP, test_cqe_skip, false},
    {RINGPOLL_FEATURE_CANCEL_FD, test_cancel_fd, false},
    {RINGPOLL_FEATURE_SYNC_CANCEL, test_sync_cancel, false},
    {RINGPOLL_FEATURE_MULTISHOT_ACCEPT, test_multishot_accept, false},
    {RINGPOLL_FEATURE_BUF_RING, test_buf_ring, false},
    {RINGPOLL_FEATURE_MULTISHOT_RECV, test_multishot_recv, false},
    {RINGPOLL_FEATURE_RECV_END, test_recv_end, false},
    {RINGPOLL_FEATURE_SPARSE_FILES, test_sparse_files, false},
    {RINGPOLL_FEATURE_SEND_ZC, test_send_zc, false},
    {RINGPOLL_FEATURE_NO_IOWAIT, test_no_iowait, false},
    {RINGPOLL_FEATURE_ABS_TIMER, test_abs_timer, false},
    {RINGPOLL_FEATURE_READ_MULTISHOT, test_read_multishot, false},
    {RINGPOLL_FEATURE_RECV_BUNDLE, test_recv_bundle, false},
    {RINGPOLL_FEATURE_NAPI, test_napi, false},
    {RINGPOLL_FEATURE_RESIZE, test_resize, true},
};

static int run_test(int (*run)(struct bench *bench), bool ends)
{
    struct bench bench;
    int result = bench_init(&bench);
    if (result < 0)
        return result;
    result = run(&bench);
    if (ends) {
        close_if_open(bench.pair[0]);
        close_if_open(bench.pair[1]);
        rp_ring_fini(&bench.own);
    } else {
        bench_fini(&bench);
    }
    return result < 0 ? result : 0;
}

/* ------------------------------------------------------------ set-up flags */

static const struct {
    uint64_t feature;
    unsigned flags;
} setups[] = {
    {RINGPOLL_FEATURE_DEFER, RP_SETUP_SINGLE_ISSUER | RP_SETUP_DEFER_TASKRUN},
    {RINGPOLL_FEATURE_SINGLE_ISSUER, RP_SETUP_SINGLE_ISSUER},
    {RINGPOLL_FEATURE_COOP, RP_SETUP_COOP_TASKRUN},
    {RINGPOLL_FEATURE_TASKRUN_FLAG, RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG},
    {RINGPOLL_FEATURE_SUBMIT_ALL, RP_SETUP_SUBMIT_ALL},
    {RINGPOLL_FEATURE_CQSIZE, RP_SETUP_CQSIZE},
    {RINGPOLL_FEATURE_CLAMP, RP_SETUP_CLAMP},
    {RINGPOLL_FEATURE_SQPOLL, RP_SETUP_SQPOLL},
    {RINGPOLL_FEATURE_NO_SQARRAY, RP_SETUP_NO_SQARRAY},
};

/* 0 or why not: does the kernel take these flags? *ret_features is its word. */
static int try_setup(unsigned flags, uint32_t *ret_features)
{
    struct rp_params params;
    memset(&params, 0, sizeof(params));
    params.flags = flags;
    params.sq_thread_idle = 1;
    if (flags & RP_SETUP_CQSIZE)
        params.cq_entries = 16;
    int fd = rp_sys->uring_setup(4, &params);
    if (fd < 0)
        return fd;
    rp_sys_close(fd);
    *ret_features = params.features;
    if ((flags & RP_SETUP_CQSIZE) && params.cq_entries != 16)
        return -EPROTO;
    if ((flags & RP_SETUP_SQPOLL) && !(params.features & RP_FEAT_SQPOLL_NONFIXED))
        return -EOPNOTSUPP;
    return 0;
}

static unsigned bit_of(uint64_t feature)
{
    return (unsigned)__builtin_ctzll(feature);
}

int ringpoll_get_probe(struct ringpoll_probe *probe)
{
    if (!probe || probe->size < sizeof(*probe))
        return -EINVAL;
    uint32_t size = probe->size;
    memset(probe, 0, size); /* a later header's fields: nothing known */
    probe->size = size;
    probe->masked = rp_probe_masked();

    uint32_t features;
    probe->error = try_setup(0, &features);
    if (probe->masked & RINGPOLL_FEATURE_URING)
        probe->knob = RINGPOLL_KNOB_MASK;
    if (probe->error < 0) {
        probe->knob = rp_probe_knob(probe->error);
        for (unsigned bit = 0; bit < RINGPOLL_FEATURE_COUNT; bit++)
            probe->feature_error[bit] = probe->error;
        return 0;
    }
    probe->kernel = RINGPOLL_FEATURE_URING;
    for (unsigned i = 0; i < sizeof(setups) / sizeof(setups[0]); i++) {
        int error = try_setup(setups[i].flags, &features);
        probe->feature_error[bit_of(setups[i].feature)] = error;
        if (error == 0)
            probe->kernel |= setups[i].feature;
    }
    for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        int error = run_test(tests[i].run, tests[i].ends);
        probe->feature_error[bit_of(tests[i].feature)] = error;
        if (error == 0)
            probe->kernel |= tests[i].feature;
    }
    probe->usable = rp_probe_close_over(probe->kernel, probe->masked);
    return 0;
}
