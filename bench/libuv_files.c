/* SPDX-License-Identifier: MIT
 *
 * libuv-files: what one file request of libuv costs, on a stock libuv and on one that was
 * built --with-uring, and what the same call costs on a bare ring.
 *
 *   libuv-files --stock=DIR --ours=DIR [--rounds=N] [--op=NAME] [--bytes=N] [--depth=N]… FILE
 *   libuv-files --ring …          the second side is a bare ring instead
 *
 * DIR has a libuv.so.1. Each side is a process of its own, run by LD_LIBRARY_PATH, and they
 * take turns. Counted is the processor time of all threads of the process, in cycles of the
 * time stamp counter, divided by the requests; each result is checked inside the clock.
 * Printed are the medians of the rounds, and the median of the ratios of neighbours.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <uv.h>

#include "cycles.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"

#define DEPTH_MAX 256
#define ROUNDS_MAX 99
#define FILE_BYTES (16u << 20)

enum op { READ, READ_NEXT, WRITE, OPEN_CLOSE, STAT, FSTAT, FSYNC, RENAME, UNLINK, OPS };
static const char *const op_names[] = {"read", "read-next", "write", "open+close", "stat", "fstat",
                                       "fsync", "rename", "unlink"};

static struct {
    enum op op;
    unsigned depth, bytes, left, in_flight, done;
    int fd, failed;
    const char *path;
    char *bytes_of[DEPTH_MAX];
    char names[DEPTH_MAX][2][256];
    bool renamed[DEPTH_MAX], second[DEPTH_MAX];
} job;
static uint64_t random_state = 1;

static int64_t next_offset(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((random_state >> 33) % (FILE_BYTES / job.bytes)) * job.bytes;
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A file for each that is in flight, made anew where the last request took it away. */
static void prepare(unsigned slot)
{
    if (job.op == UNLINK || (job.op == RENAME && !job.names[slot][0][0]))
        close(open(job.names[slot][0], O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static bool is_right(unsigned slot, int64_t result)
{
    (void)slot;
    switch (job.op) {
    case READ:
    case WRITE:
        return result == job.bytes;
    case READ_NEXT:
        if (result == 0)
            lseek(job.fd, 0, SEEK_SET);
        return result >= 0;
    case OPEN_CLOSE:
        return result >= 0;
    default:
        return result == 0;
    }
}

/* ------------------------------------------------------------------- on libuv */

static uv_loop_t *loop;
static uv_fs_t requests[DEPTH_MAX];

static void on_done(uv_fs_t *request);

static void ask(unsigned slot)
{
    uv_fs_t *request = &requests[slot];
    uv_buf_t buffer = uv_buf_init(job.bytes_of[slot], job.bytes);
    int error = 0;
    job.in_flight++;
    prepare(slot);
    switch (job.op) {
    case READ: error = uv_fs_read(loop, request, job.fd, &buffer, 1, next_offset(), on_done); break;
    case READ_NEXT: error = uv_fs_read(loop, request, job.fd, &buffer, 1, -1, on_done); break;
    case WRITE: error = uv_fs_write(loop, request, job.fd, &buffer, 1, next_offset(), on_done); break;
    case OPEN_CLOSE: error = uv_fs_open(loop, request, job.path, O_RDONLY, 0, on_done); break;
    case STAT: error = uv_fs_stat(loop, request, job.path, on_done); break;
    case FSTAT: error = uv_fs_fstat(loop, request, job.fd, on_done); break;
    case FSYNC: error = uv_fs_fsync(loop, request, job.fd, on_done); break;
    case RENAME:
        error = uv_fs_rename(loop, request, job.names[slot][job.renamed[slot]],
                             job.names[slot][!job.renamed[slot]], on_done);
        job.renamed[slot] = !job.renamed[slot];
        break;
    case UNLINK: error = uv_fs_unlink(loop, request, job.names[slot][0], on_done); break;
    case OPS: break;
    }
    job.failed += error != 0;
}

static void on_done(uv_fs_t *request)
{
    unsigned slot = (unsigned)(request - requests);
    int64_t result = request->result;
    uv_fs_req_cleanup(request);
    job.in_flight--;
    if (job.op == OPEN_CLOSE && !job.second[slot]) {
        job.failed += result < 0;
        job.second[slot] = true;
        job.in_flight++;
        uv_fs_close(loop, request, (uv_file)result, on_done);
        return;
    }
    job.second[slot] = false;
    job.failed += !is_right(slot, result);
    job.done++;
    if (job.left > 0) {
        job.left--;
        ask(slot);
    }
}

static void on_libuv(void)
{
    for (unsigned slot = 0; slot < job.depth; slot++)
        ask(slot);
    uv_run(loop, UV_RUN_DEFAULT);
}

/* --------------------------------------------------------------- on a bare ring */

static struct rp_ring ring;
static char buffers[DEPTH_MAX][256]; /* struct statx */

static void ask_ring(unsigned slot, int opened)
{
    struct rp_sqe *sqe = rp_ring_get_sqe(&ring);
    prepare(slot);
    sqe->user_data = slot;
    sqe->fd = job.fd;
    switch (job.op) {
    case READ:
    case WRITE:
    case READ_NEXT:
        sqe->opcode = job.op == WRITE ? RP_IORING_OP_WRITE : RP_IORING_OP_READ;
        sqe->addr = (uint64_t)(uintptr_t)job.bytes_of[slot];
        sqe->len = job.bytes;
        sqe->off = job.op == READ_NEXT ? ~UINT64_C(0) : (uint64_t)next_offset();
        break;
    case OPEN_CLOSE:
        if (opened >= 0) {
            sqe->opcode = RP_IORING_OP_CLOSE;
            sqe->fd = opened;
        } else {
            sqe->opcode = RP_IORING_OP_OPENAT;
            sqe->fd = AT_FDCWD;
            sqe->addr = (uint64_t)(uintptr_t)job.path;
            sqe->op_flags = O_RDONLY | O_CLOEXEC;
            sqe->flags = RP_SQE_ASYNC; /* else it does not wait for a FIFO's other end */
        }
        break;
    case STAT:
    case FSTAT:
        sqe->opcode = RP_IORING_OP_STATX;
        sqe->fd = job.op == STAT ? AT_FDCWD : job.fd;
        sqe->addr = (uint64_t)(uintptr_t)(job.op == STAT ? job.path : "");
        sqe->len = 0x7ff; /* STATX_BASIC_STATS */
        sqe->off = (uint64_t)(uintptr_t)&buffers[slot];
        sqe->op_flags = job.op == STAT ? 0 : 0x1000; /* AT_EMPTY_PATH */
        break;
    case FSYNC: sqe->opcode = RP_IORING_OP_FSYNC; break;
    case RENAME:
        sqe->opcode = RP_IORING_OP_RENAMEAT;
        sqe->fd = AT_FDCWD;
        sqe->len = (uint32_t)AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)job.names[slot][job.renamed[slot]];
        sqe->off = (uint64_t)(uintptr_t)job.names[slot][!job.renamed[slot]];
        job.renamed[slot] = !job.renamed[slot];
        break;
    case UNLINK:
        sqe->opcode = RP_IORING_OP_UNLINKAT;
        sqe->fd = AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)job.names[slot][0];
        break;
    case OPS: break;
    }
    job.in_flight++;
}

static void on_ring(void)
{
    for (unsigned slot = 0; slot < job.depth; slot++)
        ask_ring(slot, -1);
    while (job.in_flight > 0) {
        struct rp_cqe *cqe;
        if (rp_ring_enter(&ring, 1, NULL, NULL) < 0) {
            job.failed++;
            return;
        }
        while ((cqe = rp_ring_peek(&ring)) != NULL) {
            unsigned slot = (unsigned)cqe->user_data;
            int result = cqe->res;
            rp_ring_seen(&ring);
            job.in_flight--;
            if (job.op == OPEN_CLOSE && !job.second[slot] && result >= 0) {
                job.second[slot] = true;
                ask_ring(slot, result);
                continue;
            }
            job.second[slot] = false;
            job.failed += !is_right(slot, result);
            job.done++;
            if (job.left > 0) {
                job.left--;
                ask_ring(slot, -1);
            }
        }
    }
}

/* ----------------------------------------------------------------------- a side */

static bool make_files(void)
{
    struct stat status;
    job.fd = open(job.path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (job.fd < 0 || fstat(job.fd, &status) < 0)
        return false;
    char *bytes = calloc(1, 1 << 20);
    for (off_t at = status.st_size; bytes && at < FILE_BYTES; at += 1 << 20)
        if (pwrite(job.fd, bytes, 1 << 20, at) != 1 << 20)
            return false;
    for (off_t at = 0; bytes && at < FILE_BYTES; at += 1 << 20) /* into the cache */
        if (pread(job.fd, bytes, 1 << 20, at) != 1 << 20)
            return false;
    free(bytes);
    for (unsigned slot = 0; slot < job.depth; slot++) {
        job.bytes_of[slot] = malloc(job.bytes);
        if (!job.bytes_of[slot])
            return false;
        memset(job.bytes_of[slot], 1, job.bytes);
        for (unsigned i = 0; i < 2; i++)
            snprintf(job.names[slot][i], sizeof job.names[slot][i], "%.200s.%u.%u", job.path, slot, i);
        if (job.op == RENAME || job.op == UNLINK)
            close(open(job.names[slot][0], O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    return true;
}

static int run_side(bool on_a_ring, unsigned count)
{
    if (!make_files()) {
        fprintf(stderr, "libuv-files: '%s': %s\n", job.path, strerror(errno));
        return 1;
    }
    struct rp_ring_options options = {.sq_entries = 512, .cq_entries = 1024, .features = ~UINT64_C(0)};
    if (on_a_ring && rp_ring_init(&ring, &options) < 0)
        return 1;
    loop = uv_default_loop();
    void (*run)(void) = on_a_ring ? on_ring : on_libuv;
    job.left = count / 8 + job.depth;
    run(); /* threads, rings and caches come up */
    job.done = 0;
    job.left = count > job.depth ? count - job.depth : 0;
    uint64_t cpu = cpu_ns(), cycles = cycles_now(), wall = wall_ns();
    run();
    cpu = cpu_ns() - cpu;
    double per_ns = (double)(cycles_now() - cycles) / (double)(wall_ns() - wall);
    printf("%.1f\n", (double)cpu * per_ns / job.done);
    for (unsigned slot = 0; slot < job.depth; slot++) {
        unlink(job.names[slot][0]);
        unlink(job.names[slot][1]);
    }
    return job.failed == 0 ? 0 : 1;
}

/* -------------------------------------------------------------------- comparing */

/* Cycles a request of one run, in a process of its own; below 0: it failed. */
static double run_apart(char *const arguments[], const char *library)
{
    int ends[2];
    char text[64] = "";
    if (pipe(ends) < 0)
        return -1;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        setenv("LD_LIBRARY_PATH", library, 1);
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    close(ends[1]);
    size_t have = 0;
    ssize_t got;
    while (have < sizeof text - 1 && (got = read(ends[0], text + have, sizeof text - 1 - have)) > 0)
        have += (size_t)got;
    close(ends[0]);
    int status = 1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0 && have > 0 ? strtod(text, NULL) : -1;
}

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, unsigned count)
{
    qsort(values, count, sizeof *values, by_size);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static int compare(char *program, const char *stock, const char *ours, unsigned rounds, unsigned count)
{
    double sides[2][ROUNDS_MAX], ratios[ROUNDS_MAX];
    char op[64], bytes[32], depth[32], requests_text[32];
    snprintf(op, sizeof op, "--op=%s", op_names[job.op]);
    snprintf(bytes, sizeof bytes, "--bytes=%u", job.bytes);
    snprintf(depth, sizeof depth, "--depth=%u", job.depth);
    snprintf(requests_text, sizeof requests_text, "--count=%u", count);
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned i = 0; i < 2; i++) {
            unsigned side = i ^ (round & 1); /* who goes first, in turn */
            char *arguments[] = {program, side == 1 && !ours ? "--one-ring" : "--one", op, bytes, depth,
                                 requests_text, (char *)(uintptr_t)job.path, NULL};
            sides[side][round] = run_apart(arguments, side == 1 && ours ? ours : stock);
            if (sides[side][round] < 0) {
                fprintf(stderr, "libuv-files: a run of %s failed\n", op_names[job.op]);
                return 1;
            }
        }
        ratios[round] = sides[0][round] / sides[1][round];
    }
    printf("| %s | %u | %u | %.0f | %.0f | %.2f |\n", op_names[job.op], job.bytes, job.depth,
           median(sides[0], rounds), median(sides[1], rounds), median(ratios, rounds));
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    const char *stock = NULL, *ours = NULL;
    unsigned rounds = 11, count = 0, depths[16] = {1, 64, 256}, depth_count = 0;
    bool one = false, one_ring = false;
    job.bytes = 4096;
    for (int i = 1; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        value = value ? value + 1 : "";
        if (!strncmp(argv[i], "--stock=", 8))
            stock = value;
        else if (!strncmp(argv[i], "--ours=", 7))
            ours = value;
        else if (!strncmp(argv[i], "--rounds=", 9))
            rounds = (unsigned)atoi(value);
        else if (!strncmp(argv[i], "--count=", 8))
            count = (unsigned)atoi(value);
        else if (!strncmp(argv[i], "--bytes=", 8))
            job.bytes = (unsigned)atoi(value);
        else if (!strncmp(argv[i], "--depth=", 8) && depth_count < 16)
            depths[depth_count++] = (unsigned)atoi(value);
        else if (!strncmp(argv[i], "--op=", 5)) {
            while (job.op < OPS && strcmp(value, op_names[job.op]))
                job.op++;
        } else if (!strcmp(argv[i], "--one"))
            one = true;
        else if (!strcmp(argv[i], "--one-ring"))
            one_ring = true;
        else if (strcmp(argv[i], "--ring"))
            job.path = argv[i];
    }
    if (!job.path || job.op == OPS || rounds == 0 || rounds > ROUNDS_MAX || job.bytes == 0 ||
        job.bytes > FILE_BYTES || (!one && !one_ring && !stock)) {
        fprintf(stderr, "usage: libuv-files --stock=DIR --ours=DIR|--ring [--rounds=N] [--count=N] [--op=NAME] "
                        "[--bytes=N] [--depth=N]... FILE\n");
        return 2;
    }
    depth_count = depth_count ? depth_count : 3;
    int status = 0;
    if (!one && !one_ring)
        printf("| request | bytes | at a time | stock | %s | ratio |\n|---|---|---|---|---|---|\n",
               ours ? "`--with-uring`" : "a bare ring");
    for (unsigned i = 0; i < depth_count && status == 0; i++) {
        job.depth = depths[i] == 0 || depths[i] > DEPTH_MAX ? 1 : depths[i];
        unsigned requests_wanted = count ? count : job.op >= FSYNC ? 400 : job.bytes > 65536 ? 1000 : 20000;
        status = one || one_ring ? run_side(one_ring, requests_wanted)
                                 : compare(argv[0], stock, ours, rounds, requests_wanted);
    }
    return status;
}
