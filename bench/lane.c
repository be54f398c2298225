/* SPDX-License-Identifier: MIT
 *
 * Workers are this same binary, executed again: both sides run the same code at
 * the same addresses' distances, and what differs is the environment.
 *
 * A worker's environment is this process's without anything that speaks to the
 * library (LD_PRELOAD, RINGPOLL, …), plus what its side asks for; RINGPOLL_MASK
 * stays, so that an older kernel's features can be measured. Workers die with
 * the driver.
 */
#include "lane.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef BENCH_PKGLIBDIR
#define BENCH_PKGLIBDIR "/usr/lib/ringpoll"
#endif

extern char **environ;

const char *side_name(enum side side)
{
    static const char *const sides[] = {"epoll", "ring", "shim off", "stock", "tree"};
    return sides[side];
}

const char *profile_name(enum profile profile)
{
    static const char *const profiles[] = {"readiness", "safe", "throughput"};
    return profiles[profile];
}

static int fail(struct lane *lane, const char *what, int error)
{
    if (lane->failure[0] == '\0') {
        if (error != 0)
            snprintf(lane->failure, sizeof lane->failure, "%s side: %s: %s", side_name(lane->side), what,
                     strerror(error));
        else
            snprintf(lane->failure, sizeof lane->failure, "%s side: %s", side_name(lane->side), what);
    }
    return -1;
}

/* ------------------------------------------------------------- environment */

const char *shim_path(void)
{
    static char path[4096];
    static const char *const places[] = {
        "/../adapters/preload/.libs/libringpoll-preload.so",    /* beside a build's bench/ */
        "/../../adapters/preload/.libs/libringpoll-preload.so", /* … and its .libs/ */
    };
    const char *said = getenv("RINGPOLL_PRELOAD");
    char self[2048];
    if (said != NULL && *said != '\0')
        return access(said, R_OK) == 0 ? said : NULL;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = '\0';
        char *slash = strrchr(self, '/');
        if (slash != NULL)
            *slash = '\0';
        for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
            snprintf(path, sizeof path, "%s%s", self, places[i]);
            if (access(path, R_OK) == 0)
                return path;
        }
    }
    snprintf(path, sizeof path, "%s/libringpoll-preload.so", BENCH_PKGLIBDIR);
    return access(path, R_OK) == 0 ? path : NULL;
}

const char *libuv_path(enum side side)
{
    static char paths[2][4096];
    char *path = paths[side == SIDE_TREE];
    const char *tree = getenv("RINGPOLL_LIBUV_DIR"), *stock = getenv("RINGPOLL_LIBUV_STOCK");
    char file[4200];
    if (side == SIDE_TREE)
        snprintf(path, sizeof paths[0], "%s/.libs", tree != NULL ? tree : "");
    else if (stock != NULL && *stock != '\0')
        snprintf(path, sizeof paths[0], "%s/.libs", stock);
    else
        snprintf(path, sizeof paths[0], "%s/../stock/.libs", tree != NULL ? tree : "");
    snprintf(file, sizeof file, "%s/libuv.so.1", path);
    return tree != NULL && *tree != '\0' && access(file, R_OK) == 0 ? path : NULL;
}

static bool speaks_to_library(const char *entry)
{
    static const char *const ours[] = {"LD_PRELOAD=", "RINGPOLL=", "RINGPOLL_PROFILE=", "RINGPOLL_STATS=",
                                       "UV_USE_RINGPOLL="};
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (strncmp(entry, ours[i], strlen(ours[i])) == 0)
            return true;
    return false;
}

/* One block, so that a child can have it before exec without allocating. */
static char **environment_of(enum side side, enum profile profile)
{
    static char preload[4096 + sizeof "LD_PRELOAD="], set_profile[64], libraries[8192];
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    char **environment = malloc((count + 4) * sizeof environment[0]);
    if (environment == NULL)
        return NULL;
    size_t used = 0;
    for (size_t i = 0; i < count; i++)
        if (!speaks_to_library(environ[i]))
            environment[used++] = environ[i];
    if (side == SIDE_STOCK || side == SIDE_TREE) {
        const char *path = libuv_path(side);
        const char *others = getenv("LD_LIBRARY_PATH");
        snprintf(libraries, sizeof libraries, "LD_LIBRARY_PATH=%s%s%s", path != NULL ? path : "",
                 others != NULL ? ":" : "", others != NULL ? others : "");
        for (size_t i = 0; i < used && path != NULL; i++)
            if (strncmp(environment[i], "LD_LIBRARY_PATH=", strlen("LD_LIBRARY_PATH=")) == 0)
                environment[i--] = environment[--used];
        if (path != NULL)
            environment[used++] = libraries;
        environment[used] = NULL;
        return environment;
    }
    if (side_has_shim(side)) {
        const char *shim = shim_path();
        snprintf(preload, sizeof preload, "LD_PRELOAD=%s", shim != NULL ? shim : "");
        environment[used++] = preload;
        snprintf(set_profile, sizeof set_profile, "RINGPOLL_PROFILE=%s", profile_name(profile));
        environment[used++] = set_profile;
    }
    environment[used++] = (char *)(side == SIDE_RING ? "RINGPOLL=require" : "RINGPOLL=off");
    environment[used] = NULL;
    return environment;
}

/* --------------------------------------------------------------- processes */

static int take(int control, void *message, size_t size)
{
    ssize_t got;
    do
        got = recv(control, message, size, MSG_WAITALL);
    while (got < 0 && errno == EINTR);
    return got == (ssize_t)size ? 0 : -1;
}

/* The child end keeps its number over exec; the parent's does not. */
static pid_t spawn(const char *role, const char *const *more, char **environment, int *ret_control)
{
    int pair[2];
    char number[16];
    const char *argv[8] = {"ringpoll-bench", role, number};
    for (size_t i = 0; more != NULL && more[i] != NULL && i < 4; i++)
        argv[3 + i] = more[i];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return -1;
    snprintf(number, sizeof number, "%d", pair[1]);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int child_end = dup(pair[1]); /* without close-on-exec */
        snprintf(number, sizeof number, "%d", child_end);
        if (getppid() == parent && child_end >= 0)
            execve("/proc/self/exe", (char *const *)argv, environment);
        _exit(127);
    }
    int error = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        errno = error;
        return -1;
    }
    *ret_control = pair[0];
    return pid;
}

static int start_idler(struct lane *lane)
{
    char family[16], count[16], address[2 * sizeof lane->hello.address + 1];
    const uint8_t *bytes = (const uint8_t *)&lane->hello.address;
    const char *more[] = {family, count, address, NULL};
    char **environment = environment_of(SIDE_EPOLL, PROFILE_READINESS);
    snprintf(family, sizeof family, "%u", lane->workload.family);
    snprintf(count, sizeof count, "%u", lane->workload.idle);
    for (socklen_t i = 0; i < lane->hello.address_length; i++)
        snprintf(address + 2 * i, 3, "%02x", bytes[i]);
    if (environment == NULL)
        return fail(lane, "no memory", 0);
    lane->idler = spawn("--idler", more, environment, &lane->idler_control);
    free(environment);
    if (lane->idler < 0) {
        lane->idler = 0;
        return fail(lane, "the process of the idle connections could not be started", errno);
    }
    return 0;
}

int lane_start(struct lane *lane)
{
    char byte;
    lane->failure[0] = '\0';
    lane->control = lane->idler_control = -1;
    lane->pid = lane->idler = 0;
    if (lane->side == SIDE_TREE && libuv_path(SIDE_TREE) == NULL)
        return fail(lane, "RINGPOLL_LIBUV_DIR names no libuv that was built --with-uring", 0);
    if (side_has_shim(lane->side) && shim_path() == NULL)
        return fail(lane, "libringpoll-preload.so is not found (RINGPOLL_PRELOAD=PATH names it)", 0);
    char **environment = environment_of(lane->side, lane->profile);
    if (environment == NULL)
        return fail(lane, "no memory", 0);
    pid_t pid = spawn("--worker", NULL, environment, &lane->control);
    int error = errno;
    free(environment);
    if (pid < 0)
        return fail(lane, "the worker could not be started", error);
    lane->pid = pid;
    if (send(lane->control, &lane->workload, sizeof lane->workload, MSG_NOSIGNAL) !=
            (ssize_t)sizeof lane->workload ||
        take(lane->control, &lane->hello, sizeof lane->hello) != 0)
        return fail(lane, "the worker ended before it was ready", 0);
    if (lane->hello.error != 0)
        return fail(lane, lane->hello.message, 0);
    if (lane->workload.idle > 0) {
        struct answer answer;
        if (start_idler(lane) != 0 || lane_order(lane, WORKER_ACCEPT, lane->workload.idle, &answer) != 0)
            return -1;
        if (take(lane->idler_control, &byte, 1) != 0)
            return fail(lane, "the process of the idle connections ended", 0);
    }
    return 0;
}

static int read_answer(struct lane *lane, struct answer *ret_answer)
{
    if (take(lane->control, ret_answer, sizeof *ret_answer) != 0)
        return fail(lane, "the worker ended, or was ended because it hung", 0);
    if (ret_answer->error != 0)
        return fail(lane, ret_answer->message, 0);
    return 0;
}

static int send_order(struct lane *lane, enum worker_command command, uint32_t rounds)
{
    struct order order = {command, rounds};
    if (send(lane->control, &order, sizeof order, MSG_NOSIGNAL) != (ssize_t)sizeof order)
        return fail(lane, "the worker has ended", 0);
    return 0;
}

int lane_order(struct lane *lane, enum worker_command command, uint32_t rounds, struct answer *ret_answer)
{
    if (send_order(lane, command, rounds) != 0)
        return -1;
    return read_answer(lane, ret_answer);
}

int lane_count(struct lane *lane, uint32_t rounds, struct call_counts *ret_counts, struct answer *ret_answer)
{
    memset(ret_counts, 0, sizeof *ret_counts);
    if (count_attach(lane->pid) != 0)
        return 1;
    if (send_order(lane, WORKER_COUNT, rounds) != 0)
        return -1;
    int status = 0;
    int rc = count_until_done(lane->pid, ret_counts, &status);
    if (rc == -ESRCH) {
        lane->pid = 0;
        return fail(lane, "the worker ended while its system calls were counted", 0);
    }
    if (read_answer(lane, ret_answer) != 0)
        return -1;
    return rc == 0 ? 0 : 1;
}

/* Where the worker's objects are mapped. */
struct mapping {
    uint64_t begin, end, image; /* image: where the file's first byte would be */
    char name[64];
};
#define MAPPINGS_MAX 128

static unsigned read_mappings(pid_t pid, struct mapping *mappings)
{
    char path[64], line[4400];
    unsigned count = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    FILE *file = fopen(path, "re");
    while (file != NULL && count < MAPPINGS_MAX && fgets(line, sizeof line, file) != NULL) {
        struct mapping *mapping = &mappings[count];
        unsigned long begin, end, offset;
        char rights[8];
        int at = 0;
        if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %n", &begin, &end, rights, &offset, &at) < 4 || rights[2] != 'x')
            continue;
        line[strcspn(line, "\n")] = '\0';
        const char *slash = strrchr(line + at, '/');
        mapping->begin = begin;
        mapping->end = end;
        mapping->image = begin - offset;
        snprintf(mapping->name, sizeof mapping->name, "%.63s", slash != NULL ? slash + 1 : line + at);
        if (strstr(mapping->name, "ringpoll-bench") != NULL || strstr(mapping->name, "cost_test") != NULL)
            snprintf(mapping->name, sizeof mapping->name, "program");
        count++;
    }
    if (file != NULL)
        fclose(file);
    return count;
}

static int by_steps(const void *a, const void *b)
{
    const struct object_steps *left = a, *right = b;
    return (left->steps < right->steps) - (left->steps > right->steps);
}

static void sum_up(pid_t pid, const struct step_counts *counts, struct object_steps *objects, FILE *dump)
{
    static struct mapping mappings[MAPPINGS_MAX];
    unsigned known = read_mappings(pid, mappings);
    memset(objects, 0, OBJECTS_MAX * sizeof objects[0]);
    for (uint64_t i = 0; i < counts->room; i++) {
        const struct step *step = &counts->steps[i];
        const char *name = "elsewhere";
        uint64_t offset = step->address;
        if (step->count == 0)
            continue;
        for (unsigned m = 0; m < known; m++)
            if (step->address >= mappings[m].begin && step->address < mappings[m].end) {
                name = mappings[m].name;
                offset = step->address - mappings[m].image;
            }
        for (unsigned object = 0; object < OBJECTS_MAX; object++) {
            if (objects[object].name[0] != '\0' && strcmp(objects[object].name, name) != 0)
                continue;
            snprintf(objects[object].name, sizeof objects[object].name, "%s", name);
            objects[object].steps += step->count;
            break;
        }
        if (dump != NULL)
            fprintf(dump, "%s 0x%llx %llu\n", name, (unsigned long long)offset, (unsigned long long)step->count);
    }
    qsort(objects, OBJECTS_MAX, sizeof objects[0], by_steps);
}

int lane_count_steps(struct lane *lane, uint32_t rounds, struct object_steps ret_objects[OBJECTS_MAX], FILE *dump)
{
    struct step_counts counts;
    struct answer answer;
    if (count_attach(lane->pid) != 0)
        return 1;
    if (send_order(lane, WORKER_COUNT, rounds) != 0)
        return -1;
    int rc = count_steps_until_done(lane->pid, &counts);
    if (rc == 0)
        sum_up(lane->pid, &counts, ret_objects, dump);
    step_counts_free(&counts);
    if (rc == -ESRCH) {
        lane->pid = 0;
        return fail(lane, "the worker ended while it was stepped through", 0);
    }
    if (read_answer(lane, &answer) != 0)
        return -1;
    return rc == 0 ? 0 : 1;
}

bool lane_holds_ring(const struct lane *lane)
{
    char path[64], target[64];
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)lane->pid);
    DIR *directory = opendir(path);
    if (directory == NULL)
        return false;
    for (struct dirent *entry = readdir(directory); entry != NULL && !found; entry = readdir(directory)) {
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        found = strcmp(target, "anon_inode:[io_uring]") == 0;
    }
    closedir(directory);
    return found;
}

int lane_stop(struct lane *lane)
{
    struct answer answer;
    int status = 0;
    bool clean = lane->failure[0] == '\0';
    if (lane->pid > 0) {
        if (clean)
            (void)lane_order(lane, WORKER_QUIT, 0, &answer);
        else
            kill(lane->pid, SIGKILL);
        while (waitpid(lane->pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (clean && !(WIFEXITED(status) && WEXITSTATUS(status) == 0))
            (void)fail(lane, "the worker did not end as it should", 0);
        lane->pid = 0;
    }
    if (lane->control >= 0)
        close(lane->control);
    if (lane->idler_control >= 0)
        close(lane->idler_control); /* its sign to end */
    if (lane->idler > 0) {
        while (waitpid(lane->idler, &status, 0) < 0 && errno == EINTR)
            ;
        lane->idler = 0;
    }
    lane->control = lane->idler_control = -1;
    return lane->failure[0] == '\0' ? 0 : -1;
}
