/* SPDX-License-Identifier: MIT
 *
 * Children, exec, rights, filters, and ends.
 */
#include "scenario.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <pthread.h>

extern char **environ;

static void still_works(int epfd, int fds[2])
{
    char byte;
    for (int round = 0; round < 3; round++) {
        SAME(write(fds[1], "y", 1), 1);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        SAME(read(fds[0], &byte, 1), 1);
        SAME(next_event(epfd, fds[0], 0), 0);
    }
}

struct Loop {
    int epfd;
    int fds[2]; /* fds[0] is watched */
};

static Loop running_loop()
{
    Loop loop;
    tcp_pair(loop.fds);
    loop.epfd = epoll_of(loop.fds[0], EPOLLIN);
    warm_up(loop.epfd);
    still_works(loop.epfd, loop.fds);
    return loop;
}

/* ------------------------------------------------------------------- fork */

SCENARIO(AForkedChildUsesTheInheritedSet)
{
    Loop loop = running_loop();
    SAME(write(loop.fds[1], "x", 1), 1);
    pid_t child = fork();
    if (child == 0) {
        SAME(next_event(loop.epfd, loop.fds[0]), EPOLLIN);
        _exit(0);
    }
    SAME(ended(child), 0);
    SAME(next_event(loop.epfd, loop.fds[0]), EPOLLIN);
    char byte;
    SAME(read(loop.fds[0], &byte, 1), 1);
    still_works(loop.epfd, loop.fds);
}

SCENARIO(AForkedChildClosesWhatItInherited)
{
    Loop loop = running_loop();
    pid_t child = fork();
    if (child == 0) {
        SAME(close(loop.fds[0]), 0);
        SAME(close(loop.epfd), 0);
        SAME(close(loop.fds[1]), 0);
        SAME(close_range(3, ~0u, 0), 0);
        /* and begins anew */
        Loop own = running_loop();
        still_works(own.epfd, own.fds);
        exit(0);
    }
    SAME(ended(child), 0);
    still_works(loop.epfd, loop.fds);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

/* The server's way: the child keeps the listener, the parent its connections. */
SCENARIO(AForkedChildDoesNotHoldItsParentsConnections)
{
    Loop loop = running_loop();
    int go[2];
    SAME(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(go[1]);
        close(loop.fds[0]);
        close(loop.fds[1]);
        SAME(read(go[0], &byte, 1), 0); /* until the parent is done */
        _exit(0);
    }
    close(go[0]);
    char byte;
    SAME(close(loop.fds[0]), 0);
    must_have_fin(loop.fds[1]);
    SAME(read(loop.fds[1], &byte, 1), 0);
    close(go[1]);
    SAME(ended(child), 0);
}

SCENARIO(AParentExitsAndItsChildGoesOn)
{
    Loop loop = running_loop();
    int tell[2];
    SAME(pipe(tell), 0);
    pid_t child = fork();
    if (child == 0) {
        if (fork() != 0)
            _exit(0);
        Loop own = running_loop();
        still_works(own.epfd, own.fds);
        SAME(write(tell[1], "k", 1), 1);
        exit(0);
    }
    close(tell[1]);
    SAME(ended(child), 0);
    char byte;
    SAME(read(tell[0], &byte, 1), 1);
    still_works(loop.epfd, loop.fds);
}

SCENARIO(OtherWaysToForkLeaveTheParentWorking)
{
    Loop loop = running_loop();
    pid_t child = _Fork();
    if (child == 0)
        _exit(close(loop.fds[0]) == 0 ? 7 : 1);
    SAME(ended(child), 7);
    still_works(loop.epfd, loop.fds);

    child = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    if (child == 0) {
        close(loop.fds[0]);
        close(loop.epfd);
        syscall(SYS_exit_group, 8);
    }
    SAME(ended(child), 8);
    still_works(loop.epfd, loop.fds);

    int terminal;
    child = forkpty(&terminal, nullptr, nullptr, nullptr);
    if (child == 0)
        _exit(close(loop.fds[0]) == 0 ? 9 : 1);
    SAME(ended(child), 9);
    close(terminal);
    still_works(loop.epfd, loop.fds);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

static Loop *cloned_loop;

static int cloned(void *argument)
{
    if (argument != cloned_loop)
        return 1;
    if (close(cloned_loop->fds[0]) != 0 || close(cloned_loop->epfd) != 0)
        return 2;
    return 11;
}

SCENARIO(ClonedChildrenLeaveTheParentWorking)
{
    Loop loop = running_loop();
    cloned_loop = &loop;
    const size_t size = 1 << 18;
    char *stack = static_cast<char *>(
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
    MUST(stack != MAP_FAILED);
    const int ways[] = {SIGCHLD, CLONE_VM | CLONE_VFORK | SIGCHLD};
    for (int flags : ways) {
        pid_t child = clone(cloned, stack + size, flags, &loop);
        SAME(ended(child), 11);
        still_works(loop.epfd, loop.fds);
    }
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

/* ------------------------------------------------------------ vfork, spawn */

static int vfork_and_close(const Loop &loop, const char *program, int status)
{
    volatile int marker = 1;
    pid_t child = vfork();
    if (child == 0) {
        close(loop.fds[0]);
        close(loop.epfd);
        dup2(loop.fds[1], loop.fds[0]);
        for (int fd = 3; fd < 1200; fd++)
            close(fd);
        marker = 2;
        if (program)
            execl(program, program, "-c", "exit 5", static_cast<char *>(nullptr));
        _exit(status);
    }
    MUST(child > 0);
    SAME(marker, 2); /* it was a vfork, in shared memory */
    return ended(child);
}

SCENARIO(AVforkChildEditsNothingOfItsParents)
{
    Loop loop = running_loop();
    for (int round = 0; round < 20; round++) {
        SAME(vfork_and_close(loop, nullptr, 42), 42);
        SAME(vfork_and_close(loop, "/bin/sh", 1), 5);
        SAME(vfork_and_close(loop, "/no/such/program", 43), 43);
        still_works(loop.epfd, loop.fds);
    }
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

SCENARIO(AVforkChildReadsAndWritesWhatItPutInAWatchedPlace)
{
    Loop loop = running_loop();
    int ends[2];
    SAME(pipe(ends), 0);
    pid_t child = vfork();
    if (child == 0) {
        /* A pipe under the number of a socket that the parent's ring polls. */
        if (dup2(ends[1], loop.fds[0]) != loop.fds[0] || write(loop.fds[0], "child", 5) != 5)
            _exit(1);
        char text[8];
        if (dup2(ends[0], loop.fds[0]) != loop.fds[0] || read(loop.fds[0], text, sizeof text) != 5)
            _exit(2);
        _exit(44);
    }
    SAME(ended(child), 44);
    still_works(loop.epfd, loop.fds);
}

SCENARIO(VforkInAVforkChild)
{
    Loop loop = running_loop();
    pid_t child = vfork();
    if (child == 0) {
        pid_t grandchild = vfork();
        if (grandchild == 0) {
            close(loop.fds[0]);
            _exit(3);
        }
        int status;
        waitpid(grandchild, &status, 0);
        close(loop.fds[0]);
        close(loop.epfd);
        _exit(WEXITSTATUS(status) + 1);
    }
    SAME(ended(child), 4);
    still_works(loop.epfd, loop.fds);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

static void *vfork_in_thread(void *at)
{
    const Loop &loop = *static_cast<Loop *>(at);
    for (int round = 0; round < 50; round++)
        SAME(vfork_and_close(loop, nullptr, 17), 17);
    return nullptr;
}

SCENARIO(ThreadsVforkWhileOthersWait)
{
    Loop loop = running_loop();
    pthread_t threads[3];
    for (pthread_t &thread : threads)
        SAME(pthread_create(&thread, nullptr, vfork_in_thread, &loop), 0);
    for (int round = 0; round < 300; round++)
        still_works(loop.epfd, loop.fds);
    for (pthread_t &thread : threads)
        SAME(pthread_join(thread, nullptr), 0);
    still_works(loop.epfd, loop.fds);
}

static volatile int handled_fd = -1;

static void close_in_handler(int)
{
    if (handled_fd >= 0)
        close(handled_fd);
    handled_fd = -1;
}

/* The handler runs in the parent the moment vfork lets it go on, while the
 * child's traces are still there: it is the parent's close all the same. */
SCENARIO(ASignalRightAfterVforkIsTheParents)
{
    Loop loop = running_loop();
    struct sigaction action = {};
    action.sa_handler = close_in_handler;
    SAME(sigaction(SIGUSR1, &action, nullptr), 0);
    pid_t self = getpid();
    handled_fd = loop.fds[0];
    pid_t child = vfork();
    if (child == 0) {
        kill(self, SIGUSR1);
        _exit(0);
    }
    SAME(ended(child), 0);
    SAME(handled_fd, -1);
    must_have_fin(loop.fds[1]);
}

SCENARIO(SpawnedProgramsLeaveTheParentWorking)
{
    Loop loop = running_loop();
    char shell[] = "/bin/sh", option[] = "-c", text[] = "exit 6";
    char *argv[] = {shell, option, text, nullptr};
    for (int round = 0; round < 5; round++) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addclose(&actions, loop.fds[0]);
        posix_spawn_file_actions_adddup2(&actions, 0, loop.epfd);
        pid_t child;
        SAME(posix_spawn(&child, shell, &actions, nullptr, argv, environ), 0);
        SAME(ended(child), 6);
        SAME(posix_spawnp(&child, "sh", &actions, nullptr, argv, environ), 0);
        SAME(ended(child), 6);
        SAME(posix_spawn(&child, "/no/such/program", nullptr, nullptr, argv, environ), ENOENT);
        posix_spawn_file_actions_destroy(&actions);
        still_works(loop.epfd, loop.fds);

        int status = system("exit 9");
        SAME(WEXITSTATUS(status), 9);
        still_works(loop.epfd, loop.fds);

        FILE *stream = popen("echo from the child", "r");
        char line[64] = "";
        add(loop.epfd, fileno(stream), EPOLLIN);
        MUST(next_event(loop.epfd, fileno(stream)) & (EPOLLIN | EPOLLHUP));
        MUST(fgets(line, sizeof line, stream) != nullptr);
        SAME(strcmp(line, "from the child\n"), 0);
        SAME(pclose(stream), 0);
        still_works(loop.epfd, loop.fds);
    }
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

SCENARIO_WITHOUT_RING(DaemonGoesOn)
{
    int tell[2];
    SAME(pipe(tell), 0);
    pid_t child = fork();
    if (child == 0) {
        Loop loop = running_loop();
        SAME(daemon(1, 0), 0);
        /* An inherited set still answers, and a new one works. */
        still_works(loop.epfd, loop.fds);
        Loop own = running_loop();
        still_works(own.epfd, own.fds);
        close(loop.fds[0]);
        must_have_fin(loop.fds[1]);
        SAME(write(tell[1], "k", 1), 1);
        _exit(0);
    }
    close(tell[1]);
    SAME(ended(child), 0);
    char byte;
    SAME(read(tell[0], &byte, 1), 1);
    SAME(read(tell[0], &byte, 1), 0); /* when it has ended */
}

/* ------------------------------------------------------------------- exec */

/* Run again by exec, below: the fd numbers are in the arguments. */
SCENARIO_WITHOUT_RING(after_exec)
{
    MUST(scenario_arguments[0] && scenario_arguments[1]);
    int epfd = atoi(scenario_arguments[0]), fd = atoi(scenario_arguments[1]);
    if (scenario_arguments[2] && strcmp(scenario_arguments[2], "gone") == 0) {
        epoll_event event = {};
        SAME(epoll_wait(epfd, &event, 1, 0), -1);
        SAME(errno, EBADF);
        return;
    }
    SAME(next_event(epfd, fd), EPOLLIN);
    char byte;
    SAME(read(fd, &byte, 1), 1);
    SAME(next_event(epfd, fd, 0), 0);
    Loop loop = running_loop();
    add(epfd, loop.fds[0], EPOLLIN);
    still_works(loop.epfd, loop.fds);
    SAME(write(loop.fds[1], "x", 1), 1);
    SAME(next_event(epfd, loop.fds[0]), EPOLLIN);
}

static void exec_self(int epfd, int fd, const char *expectation)
{
    char epfd_text[16], fd_text[16];
    snprintf(epfd_text, sizeof epfd_text, "%d", epfd);
    snprintf(fd_text, sizeof fd_text, "%d", fd);
    execl("/proc/self/exe", scenario_program, "after_exec", epfd_text, fd_text, expectation,
          static_cast<char *>(nullptr));
    broken(__FILE__, __LINE__, "exec");
}

SCENARIO_WITHOUT_RING(ASetThatSurvivesExecKeepsItsEvents)
{
    Loop loop = running_loop();
    SAME(fcntl(loop.epfd, F_SETFD, 0), 0);
    SAME(write(loop.fds[1], "x", 1), 1);
    exec_self(loop.epfd, loop.fds[0], nullptr);
}

/* Run again by exec, below: an event of a listener, by its data. */
SCENARIO_WITHOUT_RING(after_exec_with_a_listener)
{
    MUST(scenario_arguments[0]);
    int epfd = atoi(scenario_arguments[0]);
    epoll_event event = {};
    SAME(epoll_wait(epfd, &event, 1, 5000), 1);
    SAME(event.events, EPOLLIN);
    SAME(event.data.u64, 4711);
    SAME(epoll_wait(epfd, &event, 1, 0), 0); /* edge-triggered */
}

SCENARIO_WITHOUT_RING(ASetThatSurvivesExecKeepsEdgesOfListeners)
{
    unsigned short port = 0;
    int server = listener(&port), epfd = epoll_create1(0);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = 4711;
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, server, &event), 0);
    warm_up(epfd);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    SAME(connect(client, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    char epfd_text[16];
    snprintf(epfd_text, sizeof epfd_text, "%d", epfd);
    execl("/proc/self/exe", scenario_program, "after_exec_with_a_listener", epfd_text, static_cast<char *>(nullptr));
    broken(__FILE__, __LINE__, "exec");
}

SCENARIO(ASetThatSurvivesForkAndExecKeepsItsEvents)
{
    Loop loop = running_loop();
    SAME(fcntl(loop.epfd, F_SETFD, 0), 0);
    SAME(write(loop.fds[1], "x", 1), 1);
    pid_t child = fork();
    if (child == 0)
        exec_self(loop.epfd, loop.fds[0], nullptr);
    SAME(ended(child), 0);
    /* The child took the byte. */
    SAME(next_event(loop.epfd, loop.fds[0], 0), 0);
    still_works(loop.epfd, loop.fds);
}

SCENARIO_WITHOUT_RING(ACloseOnExecSetEndsWithExec)
{
    Loop loop = running_loop();
    exec_self(loop.epfd, loop.fds[0], "gone");
}

SCENARIO(AFailedExecChangesNothing)
{
    Loop loop = running_loop();
    char name[] = "/no/such/program";
    char *argv[] = {name, nullptr};
    SAME(execv(name, argv), -1);
    SAME(errno, ENOENT);
    SAME(execl(name, name, static_cast<char *>(nullptr)), -1);
    SAME(errno, ENOENT);
    SAME(setenv("PATH", "/usr/bin:/bin", 1), 0); /* one of another user's would be EACCES */
    SAME(execvp("no-such-program-at-all", argv), -1);
    SAME(errno, ENOENT);
    still_works(loop.epfd, loop.fds);
}

SCENARIO_WITHOUT_RING(list_arguments)
{
    for (char **at = scenario_arguments; *at; at++)
        printf("%s;", *at);
    const char *value = getenv("SCENARIO_VARIABLE");
    printf("%s\n", value ? value : "unset");
}

static pid_t start_child()
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        alarm(50); /* it would outlive a parent that hangs */
    return child;
}

SCENARIO_WITHOUT_RING(EveryExecPassesItsArguments)
{
    char path[] = "/proc/self/exe", name[] = "scenarios", what[] = "list_arguments";
    char a[] = "a", b[] = "b c", empty[] = "", variable[] = "SCENARIO_VARIABLE=set";
    char *argv[] = {name, what, a, b, empty, nullptr};
    char *bare[] = {variable, getenv("LD_PRELOAD") ? const_cast<char *>("LD_BIND_NOW=1") : nullptr, nullptr};
    int self = open(path, O_RDONLY | O_CLOEXEC);
    char shell_text[] = "printf 'sh:%s;%s\\n' \"$0\" \"$1\"";
    for (int way = 0; way < 11; way++) {
        pid_t child = start_child();
        if (child == 0) {
            switch (way) {
            case 0: execl(path, name, what, a, b, empty, static_cast<char *>(nullptr)); break;
            case 1: execle(path, name, what, a, b, empty, static_cast<char *>(nullptr), bare); break;
            case 2: execlp("sh", "sh", "-c", shell_text, "one", "two", static_cast<char *>(nullptr)); break;
            case 3: execv(path, argv); break;
            case 4: execve(path, argv, bare); break;
            case 5: execvp(path, argv); break;
            case 6: execvpe(path, argv, bare); break;
            case 7: fexecve(self, argv, bare); break;
            case 8: execveat(AT_FDCWD, path, argv, bare, 0); break;
            case 9: syscall(SYS_execve, path, argv, bare); break;
            case 10: execl(path, name, what, a, "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", static_cast<char *>(nullptr)); break;
            }
            _exit(99);
        }
        SAME(ended(child), 0);
    }
}

/* ----------------------------------------------------------------- rights */

SCENARIO(NewCredentialsGoOnServing)
{
    if (geteuid() != 0) {
        warm_up(epoll_create1(0));
        return;
    }
    Loop loop = running_loop();
    const uid_t nobody = 65534;
    SAME(setegid(nobody), 0);
    still_works(loop.epfd, loop.fds);
    SAME(seteuid(nobody), 0);
    still_works(loop.epfd, loop.fds);
    SAME(seteuid(0), 0);
    still_works(loop.epfd, loop.fds);
    SAME(setgroups(0, nullptr), 0);
    SAME(initgroups("root", 0), 0);
    SAME(setfsuid(nobody), 0);
    SAME(setfsuid(0), nobody);
    still_works(loop.epfd, loop.fds);
    SAME(setresgid(nobody, nobody, nobody), 0);
    SAME(setgid(nobody), 0);
    SAME(setuid(nobody), 0);
    SAME(setuid(0), -1);
    SAME(errno, EPERM);
    still_works(loop.epfd, loop.fds);
    Loop own = running_loop();
    still_works(own.epfd, own.fds);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

static void forbid_the_ring(uint32_t answer, bool by_prctl)
{
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 425, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 427, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, answer),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog filter = {sizeof program / sizeof program[0], program};
    SAME(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    if (by_prctl)
        SAME(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0);
    else
        SAME(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), 0);
}

static void serve_under_filter(uint32_t answer, bool by_prctl)
{
    Loop loop = running_loop();
    int idle[2], unwaited[2];
    tcp_pair(idle);
    add(loop.epfd, idle[0], EPOLLIN | EPOLLET);
    SAME(next_event(loop.epfd, idle[0], 0), 0);
    socket_pair(unwaited);
    int second = epoll_of(unwaited[0], EPOLLIN);
    /* An event on its way must not be lost. */
    SAME(write(loop.fds[1], "x", 1), 1);
    forbid_the_ring(answer, by_prctl);
    SAME(next_event(loop.epfd, loop.fds[0]), EPOLLIN);
    char byte;
    SAME(read(loop.fds[0], &byte, 1), 1);
    still_works(loop.epfd, loop.fds);
    still_works(second, unwaited);
    Loop fresh = running_loop();
    still_works(fresh.epfd, fresh.fds);
    close(idle[0]);
    must_have_fin(idle[1]);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}

SCENARIO(AFilterThatRefusesTheRing)
{
    serve_under_filter(SECCOMP_RET_ERRNO | EPERM, true);
}
SCENARIO(AFilterThatKillsForTheRing)
{
    serve_under_filter(SECCOMP_RET_KILL_PROCESS, true);
}
SCENARIO(AFilterByNumberThatKillsForTheRing)
{
    serve_under_filter(SECCOMP_RET_KILL_PROCESS, false);
}
/* Before the first set: nothing is tried at all. */
SCENARIO_WITHOUT_RING(AFilterFromTheBeginning)
{
    forbid_the_ring(SECCOMP_RET_KILL_PROCESS, true);
    Loop loop = running_loop();
    still_works(loop.epfd, loop.fds);
}

/* What a container does: the filter is there before the program. Its argument is
 * the value of RINGPOLL. */
SCENARIO_WITHOUT_RING(under_an_inherited_filter)
{
    forbid_the_ring(SECCOMP_RET_ERRNO | EPERM, true);
    setenv("RINGPOLL", scenario_arguments[0], 1);
    execl("/proc/self/exe", scenario_program, "CloseSendsFin", static_cast<char *>(nullptr));
}

static void *serve_until_told(void *at)
{
    int stop = *static_cast<int *>(at);
    Loop loop = running_loop();
    add(loop.epfd, stop, EPOLLIN);
    for (;;) {
        epoll_event event = {};
        SAME(write(loop.fds[1], "x", 1), 1);
        MUST(epoll_wait(loop.epfd, &event, 1, 5000) == 1);
        if (event.data.fd == stop)
            break;
        char byte;
        SAME(read(loop.fds[0], &byte, 1), 1);
    }
    char rest;
    MUST(read(loop.fds[0], &rest, 1) >= 0); /* unread, it would be a reset */
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
    return nullptr;
}

/* The filter holds for the calling thread alone, but the library cannot know. */
SCENARIO(AFilterWhileOtherThreadsServe)
{
    int stop[2];
    SAME(pipe(stop), 0);
    pthread_t threads[3];
    for (pthread_t &thread : threads)
        SAME(pthread_create(&thread, nullptr, serve_until_told, &stop[0]), 0);
    Loop loop = running_loop();
    forbid_the_ring(SECCOMP_RET_KILL_PROCESS, true);
    still_works(loop.epfd, loop.fds);
    SAME(write(stop[1], "s", 1), 1);
    for (pthread_t &thread : threads)
        SAME(pthread_join(thread, nullptr), 0);
}

/* signal(7): it fails with EINTR although no handler ran. */
SCENARIO_WITHOUT_RING(AWaitThatIsStoppedAndContinuedIsInterrupted)
{
    int ready[2];
    SAME(pipe(ready), 0);
    pid_t child = start_child();
    if (child == 0) {
        Loop loop = running_loop();
        SAME(write(ready[1], "r", 1), 1);
        epoll_event event = {};
        SAME(epoll_wait(loop.epfd, &event, 1, -1), -1);
        SAME(errno, EINTR);
        _exit(24);
    }
    char byte;
    SAME(read(ready[0], &byte, 1), 1);
    /* It may not have been in its wait yet: again, until it was. */
    for (bool over = false; !over;) {
        int status = 0;
        SAME(kill(child, SIGSTOP), 0);
        SAME(waitpid(child, &status, WUNTRACED), child);
        over = WIFEXITED(status);
        if (WIFSTOPPED(status)) {
            SAME(kill(child, SIGCONT), 0);
            poll(nullptr, 0, 1); /* on a busy machine it would never get that far */
            continue;
        }
        MUST(WIFEXITED(status));
        SAME(WEXITSTATUS(status), 24);
    }
}

/* -------------------------------------------------------------------- ends */

/* On an address of this process's own, so that no connection of somebody else's
 * can be on that port. */
static int bound_socket(unsigned short *port)
{
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(0x7f400000u + (static_cast<uint32_t>(getpid()) & 0x3fffff));
    address.sin_port = htons(*port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t length = sizeof address;
    SAME(bind(fd, reinterpret_cast<sockaddr *>(&address), length), 0);
    SAME(getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

template <typename End> static void end_with_a_listener(End end, int status)
{
    unsigned short port = 0;
    int server = bound_socket(&port);
    SAME(listen(server, 8), 0);
    pid_t child = start_child();
    if (child == 0) {
        int epfd = epoll_of(server, EPOLLIN);
        Loop loop = running_loop();
        add(epfd, loop.fds[0], EPOLLIN);
        warm_up(epfd);
        end();
        _exit(98);
    }
    close(server);
    SAME(ended(child), status);
    close(bound_socket(&port));
}

SCENARIO_WITHOUT_RING(EveryEndFreesThePortAtOnce)
{
    end_with_a_listener([] { exit(1); }, 1);
    end_with_a_listener([] { _exit(2); }, 2);
    end_with_a_listener([] { _Exit(3); }, 3);
    end_with_a_listener([] { quick_exit(4); }, 4);
    end_with_a_listener([] { syscall(SYS_exit_group, 5); }, 5);
    end_with_a_listener([] { kill(getpid(), SIGKILL); }, 256 + SIGKILL);
    end_with_a_listener([] { kill(getpid(), SIGTERM); }, 256 + SIGTERM);
    end_with_a_listener([] { execl("/bin/true", "true", static_cast<char *>(nullptr)); }, 0);
}

static void exit_from_handler(int)
{
    _exit(21);
}

static void *sleeps(void *)
{
    sigset_t everything;
    sigfillset(&everything);
    pthread_sigmask(SIG_BLOCK, &everything, nullptr);
    for (;;)
        pause();
}

/* At any instant of a busy loop, in a program with one thread or two. */
static void exit_from_a_handler(bool threaded)
{
    pid_t parent = getpid();
    for (int round = 0; round < 30; round++) {
        int ready[2];
        SAME(pipe(ready), 0);
        pid_t child = start_child();
        if (child == 0) {
            signal(SIGTERM, exit_from_handler);
            pthread_t thread;
            if (threaded)
                SAME(pthread_create(&thread, nullptr, sleeps, nullptr), 0);
            Loop loop = running_loop();
            SAME(write(ready[1], "r", 1), 1);
            for (;;) {
                int fds[2];
                socket_pair(fds);
                add(loop.epfd, fds[0], EPOLLIN | EPOLLET);
                still_works(loop.epfd, loop.fds);
                close(fds[0]);
                close(fds[1]);
                if (getppid() != parent)
                    _exit(1);
            }
        }
        char byte;
        SAME(read(ready[0], &byte, 1), 1);
        for (volatile int spin = 0; spin < round * 1000; spin = spin + 1) {
        }
        SAME(kill(child, SIGTERM), 0);
        SAME(ended(child), 21);
        close(ready[0]);
        close(ready[1]);
    }
}

SCENARIO_WITHOUT_RING(ExitFromAHandler)
{
    exit_from_a_handler(false);
}

SCENARIO_WITHOUT_RING(ExitFromAHandlerInAThreadedProgram)
{
    exit_from_a_handler(true);
}

static void *waits_and_serves(void *at)
{
    Loop &loop = *static_cast<Loop *>(at);
    for (;;) {
        epoll_event event = {};
        if (epoll_wait(loop.epfd, &event, 1, -1) != 1)
            continue;
        char byte;
        SAME(read(loop.fds[0], &byte, 1), 1);
        if (byte == 'q')
            return nullptr;
        SAME(write(loop.fds[0], &byte, 1), 1);
    }
}

/* The child gets the set in whatever state the other thread has it. */
SCENARIO(AForkWhileAnotherThreadServes)
{
    Loop loop;
    tcp_pair(loop.fds);
    loop.epfd = epoll_of(loop.fds[0], EPOLLIN);
    pthread_t thread;
    SAME(pthread_create(&thread, nullptr, waits_and_serves, &loop), 0);
    for (int round = 0; round < 60; round++) {
        SAME(write(loop.fds[1], "a", 1), 1);
        pid_t child = start_child();
        if (child == 0) {
            Loop own = running_loop();
            still_works(own.epfd, own.fds);
            close(loop.fds[0]);
            close(loop.epfd);
            _exit(12);
        }
        pollfd answer = {loop.fds[1], POLLIN, 0};
        SAME(poll(&answer, 1, 5000), 1);
        char byte;
        SAME(read(loop.fds[1], &byte, 1), 1);
        SAME(ended(child), 12);
    }
    SAME(write(loop.fds[1], "q", 1), 1);
    SAME(pthread_join(thread, nullptr), 0);
    close(loop.fds[0]);
    must_have_fin(loop.fds[1]);
}
