/* SPDX-License-Identifier: MIT
 *
 * Looking into a running program, through /proc/PID/mem: its sets, their counters,
 * its fds. The program does nothing for it and does not notice; see
 * backend/anchor.h, also for why this file, alone among the tools, knows the
 * library's own structures.
 *
 * Nothing is locked and the program runs on meanwhile, so whatever is read may be
 * half changed or long over. Hence: no pointer is followed but by fetch(), which
 * fails where there is no memory; each walk has an end; and what does not fit what
 * it was reached by (a watch of another fd, say) is of something that has just
 * gone, and is left out. Records of the library are never given back, so that such
 * a look finds another record of the same kind at worst.
 *
 * /proc/PID/mem asks for the same permission as process_vm_readv(2), once, when it
 * is opened, and stays with that address space: a pid that is used anew, or an
 * exec in between, cannot be mistaken for the program.
 */
#include "look.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SETS_MOST 4096
#define CHAIN_MOST 16 /* sets that watch one fd */

/* ----------------------------------------------------------------- reading */

static void *append(void *array, size_t *count, size_t size)
{
    void *grown = (*count & (*count - 1)) == 0 ? realloc(array, (*count ? *count * 2 : 1) * size) : array;
    if (grown == NULL) {
        complain("no memory.");
        exit(STATUS_REFUSED);
    }
    memset((char *)grown + *count * size, 0, size);
    ++*count;
    return grown;
}

static bool fetch(const struct subject *subject, const void *at, void *to, size_t size)
{
    return pread64(subject->mem, to, size, (off64_t)(uintptr_t)at) == (ssize_t)size;
}

/* The anchor of the ELF file that is mapped at `start`, if it has one. */
static bool find_anchor(struct subject *subject, uintptr_t start)
{
    ElfW(Ehdr) header;
    ElfW(Phdr) programs[64];
    if (!fetch(subject, (void *)start, &header, sizeof(header)) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != (sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32) ||
        header.e_phentsize != sizeof(programs[0]) || header.e_phnum > 64 ||
        !fetch(subject, (void *)(start + header.e_phoff), programs, header.e_phnum * sizeof(programs[0])))
        return false;
    uintptr_t bias = start;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        if (programs[i].p_type == PT_LOAD && programs[i].p_offset == 0)
            bias = start - programs[i].p_vaddr;
    }
    for (unsigned i = 0; i < header.e_phnum; i++) {
        unsigned char notes[1024];
        size_t size = programs[i].p_memsz < sizeof(notes) ? programs[i].p_memsz : sizeof(notes);
        uintptr_t begin = bias + programs[i].p_vaddr;
        if (programs[i].p_type != PT_NOTE || programs[i].p_align > 4 || !fetch(subject, (void *)begin, notes, size))
            continue;
        ElfW(Nhdr) note;
        for (size_t at = 0, next; at + sizeof(note) <= size; at = next) {
            memcpy(&note, notes + at, sizeof(note));
            if (note.n_namesz > size || note.n_descsz > size)
                break;
            size_t name = at + sizeof(note), desc = name + ((note.n_namesz + 3u) & ~3u);
            next = desc + ((note.n_descsz + 3u) & ~3u);
            int32_t distance;
            if (next > size || note.n_type != RP_ANCHOR_NOTE_TYPE || note.n_descsz != sizeof(distance) ||
                note.n_namesz != sizeof(RP_ANCHOR_NOTE) || memcmp(notes + name, RP_ANCHOR_NOTE, note.n_namesz) != 0)
                continue;
            memcpy(&distance, notes + desc, sizeof(distance));
            const struct rp_anchor *theirs = (const struct rp_anchor *)(begin + desc + (uintptr_t)(intptr_t)distance);
            if (fetch(subject, theirs, &subject->anchor, sizeof(subject->anchor)) &&
                memcmp(subject->anchor.magic, rp_anchor.magic, sizeof(rp_anchor.magic)) == 0 &&
                subject->anchor.self != NULL) /* a file that is mapped, not loaded */
                return true;
        }
    }
    return false;
}

static struct seen_set *set_at(struct subject *subject, const struct rp_set *address)
{
    for (size_t i = 0; i < subject->set_count; i++) {
        if (subject->sets[i].address == (uintptr_t)address)
            return &subject->sets[i];
    }
    return NULL;
}

static void read_sets(struct subject *subject)
{
    struct rp_set *at = NULL;
    subject->whole = fetch(subject, subject->anchor.retired, &subject->sum, sizeof(subject->sum)) &&
                     fetch(subject, subject->anchor.sets, &at, sizeof(at)) &&
                     fetch(subject, subject->anchor.fork_epoch, &subject->epoch, sizeof(subject->epoch));
    for (unsigned turns = 0; at != NULL && subject->whole; turns++) {
        struct rp_set copy;
        bool sound = false;
        for (unsigned tries = 0; tries < 3 && !sound && fetch(subject, at, &copy, sizeof(copy)); tries++)
            sound = copy.engine <= RINGPOLL_ENGINE_KERNEL && copy.reason < RINGPOLL_REASON_SLOTS;
        if (!sound || turns == SETS_MOST) {
            subject->whole = false;
            return;
        }
        if (copy.in_use)
            rp_stats_add(&subject->sum, &copy);
        if (copy.in_use && copy.names > 0) {
            subject->sets = append(subject->sets, &subject->set_count, sizeof(*subject->sets));
            struct seen_set *set = &subject->sets[subject->set_count - 1];
            set->address = (uintptr_t)at;
            set->copy = copy;
            rp_stats_add(&set->stats, &copy);
            set->stats.engine = rp_stats_engine(&copy, &set->stats.reason);
            subject->sum.sets++;
            subject->sum.rings += copy.ring.fd >= 0 && !copy.inherited;
        }
        at = copy.next_set;
    }
}

static const char *why_on_kernel(const struct subject *subject, const struct rp_fd *entry, const struct rp_watch *watch)
{
    uint32_t kind = entry->flags & RINGPOLL_FD_KIND;
    if (entry->set != NULL)
        return "an epoll instance";
    if (watch->events & EPOLLEXCLUSIVE)
        return "EPOLLEXCLUSIVE";
    if (watch->events & EPOLLWAKEUP)
        return "EPOLLWAKEUP";
    if (!(entry->flags & RP_FD_KNOWN))
        return "birth not seen";
    if (kind == RINGPOLL_FD_OTHER)
        return "of another kind";
    if ((kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX) && !(entry->flags & RINGPOLL_FD_CONNECTED))
        return "not connected";
    if (entry->flags & RP_FD_LEAVE)
        return "used in a way that needs the kernel";
    if ((entry->flags & RP_FD_SHARED) || entry->epoch != subject->epoch)
        return "shared";
    if (entry->flags & RP_FD_ALONG)
        return "read by several threads";
    if (kind == RINGPOLL_FD_PIPE)
        return "a pipe, and several threads";
    return "changed by another thread";
}

/* In the order in which rp_stream_wanted() asks. */
static const char *why_not_adopted(const struct subject *subject, const struct rp_set *set, const struct rp_fd *entry,
                                   const struct rp_watch *watch, const struct rp_stream *stream)
{
    uint32_t kind = entry->flags & RINGPOLL_FD_KIND;
    if (!(set->flags & RINGPOLL_ADOPT))
        return "profile readiness";
    if (kind != RINGPOLL_FD_TCP && kind != RINGPOLL_FD_UNIX)
        return "not a stream socket";
    if (set->engine == RINGPOLL_ENGINE_NEW)
        return "no wait yet";
    if (set->no_streams || !set->tells)
        return "no receives by this ring";
    if ((entry->flags & RP_FD_SHARED) || entry->epoch != subject->epoch)
        return "shared";
    if (entry->flags & (RP_FD_PLAIN | RP_FD_LEAVE))
        return "used in a way that needs the kernel";
    if (entry->watches != NULL && watch->next_of_fd != NULL)
        return "watched by two sets";
    if (watch->events & (EPOLLPRI | EPOLLRDBAND | EPOLLMSG))
        return "watched for urgent data";
    if (!(watch->events & EPOLLIN))
        return "not watched for reading";
    if (stream != NULL && (stream->ended || stream->error != 0))
        return "its end was received";
    if (stream != NULL && stream->state != RP_STREAM_PLAIN)
        return "being given back";
    if (stream != NULL && stream->bytes > 0)
        return "bytes to be read first";
    if (set->alone_left > 0)
        return "one event per turn";
    if (watch->adopt_in > 0)
        return watch->adopt_gap > 1 ? "put off" : "too young";
    if ((watch->events & EPOLLET) && !watch->empty)
        return "not read to its end";
    return "from its next event on";
}

static struct seen_fd *add_fd(struct subject *subject, int fd, const struct rp_fd *entry, const struct rp_set *set)
{
    static const char *const kinds[] = {"other", "tcp", "unix", "pipe", "eventfd"};
    uint32_t kind = entry->flags & RINGPOLL_FD_KIND;
    subject->fds = append(subject->fds, &subject->fd_count, sizeof(*subject->fds));
    struct seen_fd *seen = &subject->fds[subject->fd_count - 1];
    seen->fd = fd;
    seen->set = set != NULL ? set->identity : -1;
    seen->kind = !(entry->flags & RP_FD_KNOWN) && kind == 0 ? "unknown"
                 : kind < sizeof(kinds) / sizeof(kinds[0])  ? kinds[kind]
                                                            : "other";
    return seen;
}

static void read_fd(struct subject *subject, int fd, const struct rp_fd *entry, bool list)
{
    struct rp_stream stream;
    struct rp_watch watch = {.next_of_fd = entry->watches};
    bool has_stream = entry->stream != NULL && fetch(subject, entry->stream, &stream, sizeof(stream)) &&
                      stream.fd == fd && stream.state != RP_STREAM_FREE && stream.state < RP_STREAM_STATES;
    bool told = false;
    for (unsigned i = 0; watch.next_of_fd != NULL && i < CHAIN_MOST; i++) {
        if (!fetch(subject, watch.next_of_fd, &watch, sizeof(watch))) {
            subject->whole = false;
            break;
        }
        if (watch.fd != fd)
            break; /* the record is another's by now */
        struct seen_set *set = set_at(subject, watch.set);
        if (set == NULL || watch.deleted)
            continue;
        bool on_ring = watch.home == RP_HOME_RING && set->copy.engine != RINGPOLL_ENGINE_KERNEL;
        bool mine = on_ring && has_stream && stream.set == watch.set;
        bool adopted = mine && stream.state == RP_STREAM_ARMED;
        bool listens = on_ring && watch.kind == RP_KIND_LISTENER; /* the ring accepts */
        *(on_ring ? &set->on_ring : &set->on_kernel) += 1;
        set->adopted += adopted;
        if (!list)
            continue;
        struct seen_fd *seen = add_fd(subject, fd, entry, &set->copy);
        seen->on_ring = on_ring;
        seen->adopted = adopted || listens;
        if (set->copy.engine == RINGPOLL_ENGINE_KERNEL)
            seen->why = "set on kernel epoll";
        else if (!on_ring)
            seen->why = why_on_kernel(subject, entry, &watch);
        else if (!seen->adopted)
            seen->why = why_not_adopted(subject, &set->copy, entry, &watch, mine ? &stream : NULL);
        seen->unread = has_stream ? stream.bytes : 0;
        seen->unsent = has_stream ? rp_send_waiting(&stream.send) : 0;
        told = true;
    }
    if (list && has_stream && !told && (stream.bytes > 0 || rp_send_waiting(&stream.send) > 0)) {
        struct seen_fd *seen = add_fd(subject, fd, entry, NULL);
        seen->why = "not watched";
        seen->unread = stream.bytes;
        seen->unsent = rp_send_waiting(&stream.send);
    }
}

/* What a set on kernel epoll watches is known to the kernel alone. Asking it costs
 * the program a little: its epoll instance is locked meanwhile. */
static void read_kernel_set(struct subject *subject, struct seen_set *set)
{
    char line[256];
    snprintf(line, sizeof(line), "/proc/%d/fdinfo/%d", (int)subject->pid, set->copy.identity);
    FILE *info = fopen(line, "re");
    size_t known = subject->fd_count;
    while (info != NULL && fgets(line, sizeof(line), info) != NULL) {
        int fd;
        struct rp_fd entry = {.flags = 0};
        bool listed = false;
        if (sscanf(line, "tfd: %d", &fd) != 1 || fd < 0)
            continue;
        if ((unsigned)fd / RP_FD_PAGE < RP_FD_PAGES && subject->pages[(unsigned)fd / RP_FD_PAGE] != NULL)
            (void)fetch(subject, &subject->pages[(unsigned)fd / RP_FD_PAGE][(unsigned)fd % RP_FD_PAGE], &entry,
                        sizeof(entry));
        for (size_t i = 0; i < known && !listed; i++)
            listed = subject->fds[i].fd == fd && subject->fds[i].set == set->copy.identity;
        if (listed || (entry.flags & RP_FD_INTERNAL))
            continue;
        add_fd(subject, fd, &entry, &set->copy)->why = "set on kernel epoll";
        set->on_kernel++;
    }
    if (info != NULL)
        fclose(info);
}

static void read_fds(struct subject *subject, bool list)
{
    static struct rp_fd entries[RP_FD_PAGE];
    if (!fetch(subject, subject->anchor.fd_pages, subject->pages, sizeof(subject->pages))) {
        subject->whole = false;
        return;
    }
    for (unsigned page = 0; page < RP_FD_PAGES; page++) {
        if (subject->pages[page] == NULL)
            continue;
        if (!fetch(subject, subject->pages[page], entries, sizeof(entries))) {
            subject->whole = false;
            continue;
        }
        for (unsigned i = 0; i < RP_FD_PAGE; i++) {
            if (entries[i].watches != NULL || entries[i].stream != NULL)
                read_fd(subject, (int)(page * RP_FD_PAGE + i), &entries[i], list);
        }
    }
    for (size_t i = 0; i < subject->set_count && list; i++) {
        if (subject->sets[i].copy.engine == RINGPOLL_ENGINE_KERNEL)
            read_kernel_set(subject, &subject->sets[i]);
    }
}

/* ----------------------------------------------------------------- finding */

enum found { FOUND, FOUND_NOTHING, FOUND_NOBODY, FOUND_TROUBLE };

static void read_name(pid_t pid, char *name, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    FILE *comm = fopen(path, "re");
    *name = '\0';
    if (comm != NULL && fgets(name, (int)size, comm) != NULL)
        name[strcspn(name, "\n")] = '\0';
    if (comm != NULL)
        fclose(comm);
}

static void complain_of_permission(pid_t pid, const char *name)
{
    char path[64], scope = '0';
    struct stat st;
    int fd = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, &scope, 1) != 1)
        scope = '0';
    if (fd >= 0)
        close(fd);
    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    const char *cause = "it has privileges of its own, or hides its memory; root may";
    if (scope == '3')
        cause = "kernel.yama.ptrace_scope is 3, which forbids it to all until the next boot";
    else if (geteuid() == 0)
        cause = "that takes CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE), and no security module against it";
    else if (stat(path, &st) == 0 && st.st_uid != geteuid())
        cause = "it is, or was begun as, another user's; root may";
    else if (scope != '0')
        cause = "kernel.yama.ptrace_scope is not 0, so only root may (or 'sysctl kernel.yama.ptrace_scope=0')";
    complain("process %d (%s) may not be looked into: %s.", (int)pid, name, cause);
}

static void free_subject(struct subject *subject)
{
    if (subject->mem >= 0)
        close(subject->mem);
    free(subject->sets);
    free(subject->fds);
    free(subject);
}

/* Adds what there is in this process to the snapshot. */
static enum found look_into(pid_t pid, bool fds, bool quiet, struct snapshot *snapshot)
{
    char path[64], name[32], line[PATH_MAX + 128];
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    read_name(pid, name, sizeof(name));
    FILE *maps = fopen(path, "re");
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
    int mem = maps != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    int error = errno;
    if (mem < 0) {
        if (maps != NULL)
            fclose(maps);
        if (error != EACCES && error != EPERM)
            return FOUND_NOBODY;
        if (!quiet)
            complain_of_permission(pid, name);
        return FOUND_TROUBLE;
    }
    enum found found = FOUND_NOTHING;
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long long start, offset, inode;
        int file = 0;
        if (sscanf(line, "%llx-%*x r%*3c %llx %*s %llu %n", &start, &offset, &inode, &file) != 3 || offset != 0 ||
            inode == 0 || file == 0)
            continue;
        struct subject *subject = calloc(1, sizeof(*subject));
        if (subject == NULL || (subject->mem = dup(mem)) < 0) {
            free(subject);
            found = FOUND_TROUBLE;
            break;
        }
        subject->pid = pid;
        memcpy(subject->name, name, sizeof(name));
        line[strcspn(line, "\n")] = '\0';
        snprintf(subject->file, sizeof(subject->file), "%.*s", PATH_MAX - 1, line + file);
        if (!find_anchor(subject, (uintptr_t)start)) {
            free_subject(subject);
        } else if (memcmp(&subject->anchor, &rp_anchor, offsetof(struct rp_anchor, self)) != 0) {
            if (!quiet)
                complain("process %d (%s) has another build of ringpoll (%.16s) in it than this command (%.16s): use the "
                         "one that belongs to '%s'.", (int)pid, name, subject->anchor.version, rp_anchor.version,
                         subject->file);
            free_subject(subject);
            found = found == FOUND ? FOUND : FOUND_TROUBLE;
        } else {
            read_sets(subject);
            read_fds(subject, fds);
            close(subject->mem); /* it would keep the memory of a process that ends */
            subject->mem = -1;
            snapshot->subjects = append(snapshot->subjects, &snapshot->count, sizeof(*snapshot->subjects));
            snapshot->subjects[snapshot->count - 1] = subject;
            found = FOUND;
        }
    }
    fclose(maps);
    close(mem);
    return found;
}

static bool is_named(pid_t pid, const char *wanted)
{
    char name[32], path[64], file[PATH_MAX];
    read_name(pid, name, sizeof(name));
    if (*name != '\0' && strncmp(name, wanted, 15) == 0) /* all that the kernel keeps */
        return true;
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    ssize_t length = readlink(path, file, sizeof(file) - 1);
    if (length <= 0)
        return false;
    file[length] = '\0';
    static const char deleted[] = " (deleted)";
    if ((size_t)length >= sizeof(deleted) && strcmp(file + length - (sizeof(deleted) - 1), deleted) == 0)
        file[length - (ssize_t)(sizeof(deleted) - 1)] = '\0';
    char *slash = strrchr(file, '/');
    return slash != NULL && strcmp(slash + 1, wanted) == 0;
}

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int take_snapshot(struct snapshot *snapshot, pid_t wanted, const char *name, bool fds, bool quiet)
{
    unsigned looked_at = 0;
    bool trouble = false;
    memset(snapshot, 0, sizeof(*snapshot));
    snapshot->at = seconds(CLOCK_REALTIME);
    snapshot->taken = seconds(CLOCK_MONOTONIC);
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc != NULL && (entry = readdir(proc)) != NULL;) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid <= 0 || (wanted != 0 ? pid != wanted : pid == getpid() || !is_named(pid, name)))
            continue;
        enum found found = look_into(pid, fds, quiet, snapshot);
        looked_at += found != FOUND_NOBODY;
        trouble |= found == FOUND_TROUBLE;
    }
    if (proc != NULL)
        closedir(proc);
    if (snapshot->count > 0)
        return STATUS_OK;
    if (trouble)
        return STATUS_REFUSED;
    const char *what = wanted != 0 ? "process" : "process named";
    if (!quiet && looked_at == 0)
        complain("there is no %s '%s'.", what, name);
    else if (!quiet)
        complain("there is no ringpoll in %s '%s': was it started by 'ringpoll run'?", what, name);
    return STATUS_NO;
}

void free_snapshot(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->count; i++)
        free_subject(snapshot->subjects[i]);
    free(snapshot->subjects);
    memset(snapshot, 0, sizeof(*snapshot));
}
