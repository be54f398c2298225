/* SPDX-License-Identifier: MIT
 *
 * Flush points: what the program has written in a turn is with its peer while the
 * program is inside any call that can block, and before any call that tells
 * somebody something.
 *
 * Two processes. The peer listens; the program connects twice, and after a few
 * round trips (the sockets are adopted by then) it has both connections ready in one
 * turn, which is when the profile "throughput" batches. It answers on both, lets
 * the peer look that nothing has come yet (else this would prove nothing), and makes
 * the call. The peer lets it out of the call only once it has the bytes. They talk by
 * shared memory, since everything else would flush.
 */
#include "scenario.h"

#include <aio.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <mqueue.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <threads.h>
#include <time.h>

#include <atomic>
#include <new>

namespace {

constexpr int rounds = 24;

/* What both processes see. `step` counts up: 2 n + 1 when the peer has asked for the
 * n-th time, 2 n + 2 when the program has answered, and LOOKED at last. */
constexpr int LOOKED = 2 * rounds + 1;

struct Shared {
    std::atomic<int> step, received, returned, go;
    sem_t semaphore;
    pthread_mutex_t mutex, free_mutex;
    pthread_cond_t condition;
    pthread_barrier_t barrier;
    pthread_rwlock_t lock;
    std::atomic<uint32_t> word;
    pid_t program;
    unsigned short port;
};

/* Made before the fork. */
Shared *shared;
int from_peer[2], to_nobody[2], pair[2], lock_file;
char lock_path[] = "/tmp/ringpoll-flush-XXXXXX";

/* The program's own. */
int connection[2], own_file;
FILE *stream;
pthread_t thread;
thrd_t c11_thread;
mtx_t c11_mutex;
cnd_t c11_condition;
pid_t child;

/* Nothing in here may flush. */
void until(const std::atomic<int> &value, int least)
{
    timespec now, begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (value.load() < least) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        MUST(now.tv_sec < begin.tv_sec + 20);
        sched_yield();
    }
}

void ignore(int) {}

timespec soon(clockid_t clock)
{
    timespec time;
    clock_gettime(clock, &time);
    time.tv_sec += 30;
    return time;
}

struct Point {
    void (*prepare)();
    void (*call)();
    void (*release)(); /* by the peer, when it has the bytes; NULL: the call does not block */
    bool again = false; /* until the call has returned, since it may not have begun */
    int status = 0;     /* the program's */
};

void peer(int server, const Point &point)
{
    bool batches = getenv("RINGPOLL_PRELOAD_TEST_BATCHES") != nullptr;
    int fds[2];
    char bytes[64];
    for (int &fd : fds)
        MUST((fd = accept(server, nullptr, nullptr)) >= 0);
    for (int round = 0; round < rounds; round++) {
        for (int fd : fds)
            SAME(send(fd, "ask", 3, MSG_NOSIGNAL), 3);
        shared->step = 2 * round + 1;
        for (int fd : fds)
            if (round < rounds - 1)
                SAME(recv(fd, bytes, 6, MSG_WAITALL), 6);
        until(shared->step, 2 * round + 2);
    }
    for (int fd : fds)
        if (batches)
            SAME(recv(fd, bytes, sizeof bytes, MSG_DONTWAIT), -1);
    shared->step = LOOKED;
    for (int fd : fds) {
        pollfd look = {fd, POLLIN, 0};
        if (poll(&look, 1, 10000) != 1) {
            kill(shared->program, SIGKILL);
            fprintf(stderr, "nothing came while the program was in the call\n");
            _exit(1);
        }
        SAME(recv(fd, bytes, 6, MSG_WAITALL), 6);
        SAME(memcmp(bytes, "answer", 6), 0);
    }
    shared->received = 1;
    if (!point.release)
        return;
    point.release();
    while (point.again && !shared->returned) {
        poll(nullptr, 0, 2);
        point.release();
    }
}

[[noreturn]] void program(unsigned short port, const Point &point)
{
    shared->program = getpid();
    alarm(60);
    struct sigaction action = {};
    action.sa_handler = ignore;
    sigaction(SIGUSR1, &action, nullptr);
    if (point.prepare)
        point.prepare();
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    MUST(epfd >= 0);
    for (int &fd : connection) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        SAME(connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
        SAME(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK), 0);
        add(epfd, fd, EPOLLIN);
    }
    for (int round = 0; round < rounds; round++) {
        until(shared->step, 2 * round + 1);
        epoll_event events[2];
        char bytes[64];
        SAME(epoll_wait(epfd, events, 2, 5000), 2);
        for (const epoll_event &event : events) {
            SAME(read(event.data.fd, bytes, sizeof bytes), 3);
            SAME(read(event.data.fd, bytes, sizeof bytes), -1);
        }
        for (const epoll_event &event : events)
            SAME(send(event.data.fd, "answer", 6, MSG_NOSIGNAL), 6);
        if (round < rounds - 1)
            SAME(epoll_wait(epfd, events, 2, 0), 0); /* out with them */
        shared->step = 2 * round + 2;
    }
    until(shared->step, LOOKED);
    point.call();
    shared->returned = 1;
    until(shared->received, 1);
    exit(0);
}

void run(const Point &point)
{
    /* First, so that a shell can name them by one digit. */
    SAME(pipe(from_peer), 0);
    SAME(pipe(to_nobody), 0);
    SAME(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    void *memory = mmap(nullptr, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED);
    shared = new (memory) Shared{};
    SAME(sem_init(&shared->semaphore, 1, 0), 0);
    pthread_mutexattr_t mutex;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_mutex_init(&shared->free_mutex, &mutex);
    pthread_condattr_t condition;
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->condition, &condition);
    pthread_barrierattr_t barrier;
    pthread_barrierattr_init(&barrier);
    pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &barrier, 2);
    pthread_rwlockattr_t lock;
    pthread_rwlockattr_init(&lock);
    pthread_rwlockattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&shared->lock, &lock);
    /* The peer's, until it has the bytes. */
    SAME(pthread_mutex_lock(&shared->mutex), 0);
    SAME(pthread_rwlock_wrlock(&shared->lock), 0);
    MUST((lock_file = mkstemp(lock_path)) >= 0);
    SAME(lockf(lock_file, F_TLOCK, 0), 0);
    SAME(flock(lock_file, LOCK_EX), 0);

    unsigned short port = 0;
    int server = listener(&port);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        MUST((own_file = open(lock_path, O_RDWR)) >= 0);
        program(port, point);
    }
    peer(server, point);
    int status = ended(pid);
    unlink(lock_path);
    SAME(status, point.status);
}

/* ------------------------------------------------------- how peers release */

void by_signal()
{
    kill(shared->program, SIGUSR1);
}
void by_byte()
{
    SAME(write(from_peer[1], "byte", 4), 4);
}
void by_socket()
{
    SAME(write(pair[1], "byte", 4), 4);
}
void by_post()
{
    SAME(sem_post(&shared->semaphore), 0);
}
void by_condition()
{
    SAME(pthread_cond_signal(&shared->condition), 0);
}
void by_barrier()
{
    pthread_barrier_wait(&shared->barrier);
}
void by_mutex()
{
    SAME(pthread_mutex_unlock(&shared->mutex), 0);
}
void by_lock()
{
    SAME(pthread_rwlock_unlock(&shared->lock), 0);
}
void by_file()
{
    SAME(lockf(lock_file, F_ULOCK, 0), 0);
    SAME(flock(lock_file, LOCK_UN), 0);
}
void by_word()
{
    shared->word = 1;
    syscall(SYS_futex, &shared->word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}
void by_go()
{
    shared->go = 1;
}
void by_connection()
{
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(shared->port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    SAME(connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
}

/* --------------------------------------------------------- and how to prepare */

void *read_a_byte(void *)
{
    char byte;
    SAME(read(from_peer[0], &byte, 1), 1);
    return nullptr;
}
int read_a_byte_c11(void *)
{
    read_a_byte(nullptr);
    return 0;
}
void with_child()
{
    child = fork();
    if (child == 0) {
        read_a_byte(nullptr);
        _exit(0);
    }
}
void with_thread()
{
    SAME(pthread_create(&thread, nullptr, read_a_byte, nullptr), 0);
}
void with_c11_thread()
{
    SAME(thrd_create(&c11_thread, read_a_byte_c11, nullptr), thrd_success);
}
int signal_when_told(void *)
{
    until(shared->go, 1);
    while (!shared->returned) {
        cnd_signal(&c11_condition);
        sched_yield();
    }
    return 0;
}
void with_signaller()
{
    mtx_init(&c11_mutex, mtx_timed);
    cnd_init(&c11_condition);
    SAME(thrd_create(&c11_thread, signal_when_told, nullptr), thrd_success);
}
std::atomic<int> held;
int hold_until_told(void *)
{
    mtx_lock(&c11_mutex);
    held = 1;
    until(shared->go, 1);
    mtx_unlock(&c11_mutex);
    return 0;
}
void with_holder()
{
    mtx_init(&c11_mutex, mtx_timed);
    SAME(thrd_create(&c11_thread, hold_until_told, nullptr), thrd_success);
    until(held, 1);
}
void with_blocked_signal()
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, nullptr);
}
void with_listener()
{
    shared->port = 0;
    own_file = listener(&shared->port);
}
char command[64];
void with_command()
{
    snprintf(command, sizeof command, "head -c 1 <&%d >/dev/null", from_peer[0]);
}
void with_stream()
{
    with_command();
    MUST((stream = popen(command, "r")) != nullptr);
}
sigset_t signals()
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return set;
}

} // namespace

#define FLUSH(name, prepare, release, again, ...)                                                                \
    static void call_##name() __VA_ARGS__                                                                        \
    SCENARIO_WITHOUT_RING(Flush##name) { run({prepare, call_##name, release, again}); }
/* A call that does not block, and must have flushed all the same. */
#define FLUSH_AT_ONCE(name, ...) FLUSH(name, nullptr, nullptr, false, __VA_ARGS__)
/* One that ends the program. */
#define FLUSH_AT_END(name, end_status, ...)                                                                      \
    static void call_##name() __VA_ARGS__                                                                        \
    SCENARIO_WITHOUT_RING(Flush##name) { run({nullptr, call_##name, nullptr, false, end_status}); }

/* sleeps and signals */
FLUSH(Nanosleep, nullptr, by_signal, true, { timespec time = {30, 0}; SAME(nanosleep(&time, nullptr), -1); })
FLUSH(ClockNanosleep, nullptr, by_signal, true,
      { timespec time = {30, 0}; SAME(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr), EINTR); })
FLUSH(Usleep, nullptr, by_signal, true, { SAME(usleep(30000000), -1); })
FLUSH(Sleep, nullptr, by_signal, true, { MUST(sleep(30) > 0); })
FLUSH(ThrdSleep, nullptr, by_signal, true, { timespec time = {30, 0}; SAME(thrd_sleep(&time, nullptr), -1); })
FLUSH(Pause, nullptr, by_signal, true, { SAME(pause(), -1); })
FLUSH(Sigsuspend, nullptr, by_signal, true, { sigset_t none; sigemptyset(&none); SAME(sigsuspend(&none), -1); })
FLUSH(Sigwait, with_blocked_signal, by_signal, true,
      { sigset_t set = signals(); int number; SAME(sigwait(&set, &number), 0); })
FLUSH(Sigwaitinfo, with_blocked_signal, by_signal, true,
      { sigset_t set = signals(); SAME(sigwaitinfo(&set, nullptr), SIGUSR1); })
FLUSH(Sigtimedwait, with_blocked_signal, by_signal, true,
      { sigset_t set = signals(); timespec time = {30, 0}; SAME(sigtimedwait(&set, nullptr, &time), SIGUSR1); })

/* other ways to wait for events */
FLUSH(PollOfNothing, nullptr, by_signal, true, { SAME(poll(nullptr, 0, 30000), -1); })
FLUSH(Poll, nullptr, by_byte, false, { pollfd look = {from_peer[0], POLLIN, 0}; SAME(poll(&look, 1, 30000), 1); })
FLUSH(Ppoll, nullptr, by_byte, false,
      { pollfd look = {from_peer[0], POLLIN, 0}; SAME(ppoll(&look, 1, nullptr, nullptr), 1); })
FLUSH(Select, nullptr, by_byte, false,
      { fd_set set; FD_ZERO(&set); FD_SET(from_peer[0], &set); SAME(select(64, &set, nullptr, nullptr, nullptr), 1); })
FLUSH(SelectOfNothing, nullptr, by_signal, true,
      { timeval time = {30, 0}; SAME(select(0, nullptr, nullptr, nullptr, &time), -1); })
FLUSH(Pselect, nullptr, by_byte, false,
      { fd_set set; FD_ZERO(&set); FD_SET(from_peer[0], &set);
        SAME(pselect(64, &set, nullptr, nullptr, nullptr, nullptr), 1); })
FLUSH(AnotherSet, nullptr, by_byte, false,
      { int epfd = epoll_of(from_peer[0], EPOLLIN); SAME(next_event(epfd, from_peer[0], 30000), EPOLLIN); })

/* children */
FLUSH(Wait, with_child, by_byte, false, { SAME(wait(nullptr), child); })
FLUSH(Waitpid, with_child, by_byte, false, { SAME(waitpid(child, nullptr, 0), child); })
FLUSH(Wait3, with_child, by_byte, false, { SAME(wait3(nullptr, 0, nullptr), child); })
FLUSH(Wait4, with_child, by_byte, false, { SAME(wait4(child, nullptr, 0, nullptr), child); })
FLUSH(Waitid, with_child, by_byte, false, { SAME(waitid(P_PID, static_cast<id_t>(child), nullptr, WEXITED), 0); })
FLUSH(System, with_command, by_byte, false, { SAME(system(command), 0); })
FLUSH(Pclose, with_stream, by_byte, false, { SAME(pclose(stream), 0); })
FLUSH_AT_ONCE(Popen, { MUST(popen("exec true", "r") != nullptr); })
FLUSH_AT_ONCE(Fork, { child = fork(); if (child == 0) _exit(0); SAME(ended(child), 0); })
FLUSH_AT_ONCE(PosixSpawn, {
    char word[] = "true", *arguments[] = {word, nullptr};
    SAME(posix_spawnp(&child, "true", nullptr, nullptr, arguments, environ), 0);
    until(shared->received, 1);
    SAME(ended(child), 0);
})

/* threads */
FLUSH(CondWait, nullptr, by_condition, true,
      { SAME(pthread_mutex_lock(&shared->free_mutex), 0);
        SAME(pthread_cond_wait(&shared->condition, &shared->free_mutex), 0); })
FLUSH(CondTimedwait, nullptr, by_condition, true,
      { SAME(pthread_mutex_lock(&shared->free_mutex), 0);
        timespec time = soon(CLOCK_REALTIME);
        SAME(pthread_cond_timedwait(&shared->condition, &shared->free_mutex, &time), 0); })
FLUSH(Join, with_thread, by_byte, false, { SAME(pthread_join(thread, nullptr), 0); })
FLUSH(TimedJoin, with_thread, by_byte, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(pthread_timedjoin_np(thread, nullptr, &time), 0); })
FLUSH(Barrier, nullptr, by_barrier, false, { pthread_barrier_wait(&shared->barrier); })
FLUSH(SemWait, nullptr, by_post, false, { SAME(sem_wait(&shared->semaphore), 0); })
FLUSH(SemTimedwait, nullptr, by_post, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(sem_timedwait(&shared->semaphore, &time), 0); })
FLUSH(MutexLock, nullptr, by_mutex, false, { SAME(pthread_mutex_lock(&shared->mutex), 0); })
FLUSH(MutexTimedlock, nullptr, by_mutex, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(pthread_mutex_timedlock(&shared->mutex, &time), 0); })
FLUSH(ReadLock, nullptr, by_lock, false, { SAME(pthread_rwlock_rdlock(&shared->lock), 0); })
FLUSH(WriteLock, nullptr, by_lock, false, { SAME(pthread_rwlock_wrlock(&shared->lock), 0); })
FLUSH(TimedReadLock, nullptr, by_lock, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(pthread_rwlock_timedrdlock(&shared->lock, &time), 0); })
FLUSH(TimedWriteLock, nullptr, by_lock, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(pthread_rwlock_timedwrlock(&shared->lock, &time), 0); })
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 31)
FLUSH(CondClockwait, nullptr, by_condition, true,
      { SAME(pthread_mutex_lock(&shared->free_mutex), 0);
        timespec time = soon(CLOCK_MONOTONIC);
        SAME(pthread_cond_clockwait(&shared->condition, &shared->free_mutex, CLOCK_MONOTONIC, &time), 0); })
FLUSH(ClockJoin, with_thread, by_byte, false,
      { timespec time = soon(CLOCK_MONOTONIC);
        SAME(pthread_clockjoin_np(thread, nullptr, CLOCK_MONOTONIC, &time), 0); })
FLUSH(SemClockwait, nullptr, by_post, false,
      { timespec time = soon(CLOCK_MONOTONIC); SAME(sem_clockwait(&shared->semaphore, CLOCK_MONOTONIC, &time), 0); })
FLUSH(MutexClocklock, nullptr, by_mutex, false,
      { timespec time = soon(CLOCK_MONOTONIC);
        SAME(pthread_mutex_clocklock(&shared->mutex, CLOCK_MONOTONIC, &time), 0); })
FLUSH(ClockReadLock, nullptr, by_lock, false,
      { timespec time = soon(CLOCK_MONOTONIC);
        SAME(pthread_rwlock_clockrdlock(&shared->lock, CLOCK_MONOTONIC, &time), 0); })
FLUSH(ClockWriteLock, nullptr, by_lock, false,
      { timespec time = soon(CLOCK_MONOTONIC);
        SAME(pthread_rwlock_clockwrlock(&shared->lock, CLOCK_MONOTONIC, &time), 0); })
#endif
FLUSH(ThrdJoin, with_c11_thread, by_byte, false, { SAME(thrd_join(c11_thread, nullptr), thrd_success); })
FLUSH(CndWait, with_signaller, by_go, false,
      { mtx_lock(&c11_mutex); SAME(cnd_wait(&c11_condition, &c11_mutex), thrd_success); })
FLUSH(CndTimedwait, with_signaller, by_go, false,
      { timespec time = soon(CLOCK_REALTIME); mtx_lock(&c11_mutex);
        SAME(cnd_timedwait(&c11_condition, &c11_mutex, &time), thrd_success); })
FLUSH(MtxLock, with_holder, by_go, false, { SAME(mtx_lock(&c11_mutex), thrd_success); })
FLUSH(MtxTimedlock, with_holder, by_go, false,
      { timespec time = soon(CLOCK_REALTIME); SAME(mtx_timedlock(&c11_mutex, &time), thrd_success); })

/* blocking reads and the like */
FLUSH(Read, nullptr, by_byte, false, { char byte; SAME(read(from_peer[0], &byte, 1), 1); })
FLUSH(Readv, nullptr, by_byte, false, { char byte; iovec iov = {&byte, 1}; SAME(readv(from_peer[0], &iov, 1), 1); })
FLUSH(Recv, nullptr, by_socket, false, { char byte; SAME(recv(pair[0], &byte, 1, 0), 1); })
FLUSH(Recvfrom, nullptr, by_socket, false, { char byte; SAME(recvfrom(pair[0], &byte, 1, 0, nullptr, nullptr), 1); })
FLUSH(Recvmsg, nullptr, by_socket, false,
      { char byte; iovec iov = {&byte, 1}; msghdr message = {}; message.msg_iov = &iov; message.msg_iovlen = 1;
        SAME(recvmsg(pair[0], &message, 0), 1); })
FLUSH(Recvmmsg, nullptr, by_socket, false,
      { char byte; iovec iov = {&byte, 1}; mmsghdr message = {}; message.msg_hdr.msg_iov = &iov;
        message.msg_hdr.msg_iovlen = 1; SAME(recvmmsg(pair[0], &message, 1, 0, nullptr), 1); })
FLUSH(Splice, nullptr, by_byte, false,
      { SAME(splice(from_peer[0], nullptr, to_nobody[1], nullptr, 1, 0), 1); })
FLUSH(Tee, nullptr, by_byte, false, { SAME(tee(from_peer[0], to_nobody[1], 1, 0), 1); })
FLUSH(Accept, with_listener, by_connection, false, { MUST(accept(own_file, nullptr, nullptr) >= 0); })
FLUSH(Accept4, with_listener, by_connection, false, { MUST(accept4(own_file, nullptr, nullptr, SOCK_CLOEXEC) >= 0); })
FLUSH(AioSuspend, nullptr, by_byte, false, {
    char byte;
    aiocb request = {};
    request.aio_fildes = from_peer[0];
    request.aio_buf = &byte;
    request.aio_nbytes = 1;
    SAME(aio_read(&request), 0);
    const aiocb *list[] = {&request};
    SAME(aio_suspend(list, 1, nullptr), 0);
})

/* locks of files, queues */
FLUSH(Flock, nullptr, by_file, false, { SAME(flock(own_file, LOCK_EX), 0); })
FLUSH(Lockf, nullptr, by_file, false, { SAME(lockf(own_file, F_LOCK, 0), 0); })
FLUSH(FcntlLock, nullptr, by_file, false,
      { struct flock lock = {}; lock.l_type = F_WRLCK; SAME(fcntl(own_file, F_SETLKW, &lock), 0); })
FLUSH_AT_ONCE(Fsync, { SAME(fsync(own_file), 0); })
FLUSH_AT_ONCE(Fdatasync, { SAME(fdatasync(own_file), 0); })
FLUSH_AT_ONCE(Tcdrain, { tcdrain(own_file); })
FLUSH_AT_ONCE(Msgsnd, { struct { long type; char text[8]; } message = {1, "x"}; msgsnd(-1, &message, 1, IPC_NOWAIT); })
FLUSH_AT_ONCE(Msgrcv, { struct { long type; char text[8]; } message = {1, "x"}; msgrcv(-1, &message, 1, 0, IPC_NOWAIT); })
FLUSH_AT_ONCE(Semop, { sembuf operation = {0, 1, 0}; semop(-1, &operation, 1); })
FLUSH_AT_ONCE(Semtimedop, { sembuf operation = {0, 1, 0}; timespec time = {0, 1}; semtimedop(-1, &operation, 1, &time); })
FLUSH_AT_ONCE(MqSend, { mq_send(-1, "x", 1, 0); })
FLUSH_AT_ONCE(MqTimedsend, { timespec time = soon(CLOCK_REALTIME); mq_timedsend(-1, "x", 1, 0, &time); })
FLUSH_AT_ONCE(MqReceive, { char bytes[8]; mq_receive(-1, bytes, sizeof bytes, nullptr); })
FLUSH_AT_ONCE(MqTimedreceive,
              { char bytes[8]; timespec time = soon(CLOCK_REALTIME);
                mq_timedreceive(-1, bytes, sizeof bytes, nullptr, &time); })

/* look-ups */
FLUSH_AT_ONCE(Getaddrinfo, { addrinfo *found; SAME(getaddrinfo("127.0.0.1", nullptr, nullptr, &found), 0); })
FLUSH_AT_ONCE(Gethostbyname, { gethostbyname("127.0.0.1"); })
FLUSH_AT_ONCE(Gethostbyname2, { gethostbyname2("127.0.0.1", AF_INET); })
FLUSH_AT_ONCE(GethostbynameR,
              { hostent host, *found; char buffer[512]; int error;
                gethostbyname_r("127.0.0.1", &host, buffer, sizeof buffer, &found, &error); })
FLUSH_AT_ONCE(Getnameinfo,
              { sockaddr_in address = {}; address.sin_family = AF_INET; char host[64];
                SAME(getnameinfo(reinterpret_cast<sockaddr *>(&address), sizeof address, host, sizeof host, nullptr, 0,
                                 NI_NUMERICHOST), 0); })

/* what tells, or asks how much has gone */
FLUSH_AT_ONCE(Setsockopt,
              { int on = 1; SAME(setsockopt(connection[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0); })
FLUSH_AT_ONCE(Siocoutq, { int left = -1; SAME(ioctl(connection[0], SIOCOUTQ, &left), 0); })
FLUSH_AT_ONCE(Siocoutqnsd, { int left = -1; SAME(ioctl(connection[0], SIOCOUTQNSD, &left), 0); })
FLUSH_AT_ONCE(TcpInfo,
              { tcp_info info; socklen_t length = sizeof info;
                SAME(getsockopt(connection[0], IPPROTO_TCP, TCP_INFO, &info, &length), 0); })
FLUSH_AT_ONCE(Shutdown, { SAME(shutdown(connection[0], SHUT_WR), 0); })
FLUSH_AT_ONCE(Close, { SAME(close(to_nobody[0]), 0); })
FLUSH_AT_ONCE(CloseOfItself, { SAME(close(connection[0]), 0); SAME(close(connection[1]), 0); })
FLUSH_AT_ONCE(CloseRange, { SAME(close_range(200, 300, 0), 0); })
FLUSH_AT_ONCE(Connect,
              { sockaddr nowhere = {}; nowhere.sa_family = AF_UNIX; int fd = socket(AF_UNIX, SOCK_STREAM, 0);
                SAME(connect(fd, &nowhere, sizeof nowhere), -1); })
FLUSH_AT_ONCE(Write, { SAME(write(to_nobody[1], "x", 1), 1); })
FLUSH_AT_ONCE(Writev, { char byte = 'x'; iovec iov = {&byte, 1}; SAME(writev(to_nobody[1], &iov, 1), 1); })
FLUSH_AT_ONCE(Vmsplice, { char byte = 'x'; iovec iov = {&byte, 1}; SAME(vmsplice(to_nobody[1], &iov, 1, 0), 1); })
FLUSH_AT_ONCE(Sendto, {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(9);
    SAME(sendto(fd, "x", 1, 0, reinterpret_cast<sockaddr *>(&address), sizeof address), 1);
})
FLUSH_AT_ONCE(Sendmsg, {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(9);
    char byte = 'x';
    iovec iov = {&byte, 1};
    msghdr message = {};
    message.msg_name = &address;
    message.msg_namelen = sizeof address;
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    SAME(sendmsg(fd, &message, 0), 1);
})
FLUSH_AT_ONCE(Sendmmsg, {
    char byte = 'x';
    iovec iov = {&byte, 1};
    mmsghdr message = {};
    message.msg_hdr.msg_iov = &iov;
    message.msg_hdr.msg_iovlen = 1;
    SAME(sendmmsg(pair[0], &message, 1, 0), 1);
})
FLUSH_AT_ONCE(Sendfile, { sendfile(to_nobody[1], own_file, nullptr, 1); })
FLUSH_AT_ONCE(Kill, { SAME(kill(getpid(), 0), 0); })
FLUSH_AT_ONCE(Killpg, { SAME(killpg(getpgrp(), 0), 0); })
FLUSH_AT_ONCE(Raise, { SAME(raise(SIGUSR1), 0); })
FLUSH_AT_ONCE(Sigqueue, { sigval value = {}; SAME(sigqueue(getpid(), SIGUSR1, value), 0); })
FLUSH_AT_ONCE(PthreadKill, { SAME(pthread_kill(pthread_self(), SIGUSR1), 0); })
FLUSH_AT_ONCE(PthreadSigqueue, { sigval value = {}; SAME(pthread_sigqueue(pthread_self(), SIGUSR1, value), 0); })

/* by number */
FLUSH(FutexByNumber, nullptr, by_word, true,
      { while (shared->word == 0) syscall(SYS_futex, &shared->word, FUTEX_WAIT, 0, nullptr, nullptr, 0); })
FLUSH(NanosleepByNumber, nullptr, by_signal, true,
      { timespec time = {30, 0}; SAME(syscall(SYS_nanosleep, &time, nullptr), -1); })
FLUSH(ReadByNumber, nullptr, by_byte, false, { char byte; SAME(syscall(SYS_read, from_peer[0], &byte, 1), 1); })
FLUSH(WaitByNumber, with_child, by_byte, false, { SAME(syscall(SYS_wait4, child, nullptr, 0, nullptr), child); })
FLUSH_AT_ONCE(KillByNumber, { SAME(syscall(SYS_kill, getpid(), 0), 0); })
FLUSH_AT_END(ExitByNumber, 3, { syscall(SYS_exit_group, 3); })

/* the end: exit handlers may take their time */
static void linger()
{
    until(shared->received, 1);
}
FLUSH_AT_END(Exit, 3, { atexit(linger); exit(3); })
FLUSH_AT_END(QuickExit, 3, { at_quick_exit(linger); quick_exit(3); })
FLUSH_AT_END(ExitNow, 3, { _exit(3); })
FLUSH_AT_END(ExitNowToo, 3, { _Exit(3); })
FLUSH_AT_END(Abort, 256 + SIGABRT, { rlimit none = {}; setrlimit(RLIMIT_CORE, &none); abort(); })
FLUSH_AT_END(Exec, 0, { execl("/bin/true", "true", static_cast<char *>(nullptr)); })
