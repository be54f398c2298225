/* SPDX-License-Identifier: MIT
 *
 * What the tests of the command run: a program that tells how it was started.
 *
 *   helper exit N        exits with N
 *   helper argv …        prints "[argument]" for each, argv[0] first, by itself in a line
 *   helper env NAME …    prints "NAME=value", or "NAME is unset"
 *   helper process       prints pid, blocked and ignored signals and its open fds
 *   helper maps WORD     exits with 0 if a file with WORD in its name is mapped, else 1
 *   helper secure        exits with 0 if AT_SECURE is set, else 1
 *   helper wait          prints "ready", then waits for a signal
 *   helper serve PATH    listens there (AF_UNIX), prints "ready", and echoes for ever, by one
 *                        epoll loop
 *   helper epoll N       N turns of an epoll loop over a socketpair, then exits with 0
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int print_process(void)
{
    char line[4096];
    printf("pid %d\n", (int)getpid());
    FILE *status = fopen("/proc/self/status", "re");
    if (status == NULL)
        return 3;
    while (fgets(line, sizeof(line), status) != NULL) {
        if (strncmp(line, "SigBlk:", 7) == 0 || strncmp(line, "SigIgn:", 7) == 0)
            fputs(line, stdout);
    }
    fclose(status);
    for (int fd = 0; fd < 4096; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            printf("fd %d\n", fd);
    }
    return 0;
}

static int is_mapped(const char *word)
{
    char line[8192];
    FILE *maps = fopen("/proc/self/maps", "re");
    if (maps == NULL)
        return 3;
    int answer = 1;
    while (fgets(line, sizeof(line), maps) != NULL) {
        if (strstr(line, word) != NULL)
            answer = 0;
    }
    fclose(maps);
    return answer;
}

static int epoll_loop(int turns)
{
    int pair[2], epfd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    char byte = 'x';
    if (epfd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0)
        return 3;
    event.data.fd = pair[0];
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, pair[0], &event) != 0)
        return 4;
    for (int i = 0; i < turns; i++) {
        if (write(pair[1], &byte, 1) != 1)
            return 5;
        if (epoll_wait(epfd, &event, 1, 10000) != 1 || event.data.fd != pair[0])
            return 6;
        if (read(pair[0], &byte, 1) != 1)
            return 7;
    }
    close(pair[0]);
    close(pair[1]);
    close(epfd);
    return 0;
}

static int serve(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int epfd = epoll_create1(EPOLL_CLOEXEC), listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = listener}};
    if (strlen(path) >= sizeof(address.sun_path))
        return 3;
    strcpy(address.sun_path, path);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(listener, 64) != 0 ||
        epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &event) != 0)
        return 4;
    puts("ready");
    fflush(stdout);
    for (;;) {
        char bytes[4096];
        if (epoll_wait(epfd, &event, 1, -1) != 1)
            return 5;
        if (event.data.fd == listener) {
            event.data.fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (event.data.fd >= 0)
                epoll_ctl(epfd, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        ssize_t length = read(event.data.fd, bytes, sizeof(bytes));
        if (length <= 0)
            close(event.data.fd);
        else if (write(event.data.fd, bytes, (size_t)length) != length)
            return 6;
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (strcmp(verb, "exit") == 0 && argc > 2)
        return atoi(argv[2]);
    if (strcmp(verb, "argv") == 0) {
        for (int i = 0; i < argc; i++)
            printf("[%s]\n", argv[i]);
        return 0;
    }
    if (strcmp(verb, "env") == 0) {
        for (int i = 2; i < argc; i++) {
            const char *value = getenv(argv[i]);
            if (value != NULL)
                printf("%s=%s\n", argv[i], value);
            else
                printf("%s is unset\n", argv[i]);
        }
        return 0;
    }
    if (strcmp(verb, "process") == 0)
        return print_process();
    if (strcmp(verb, "maps") == 0 && argc > 2)
        return is_mapped(argv[2]);
    if (strcmp(verb, "secure") == 0)
        return getauxval(AT_SECURE) != 0 ? 0 : 1;
    if (strcmp(verb, "wait") == 0) {
        puts("ready");
        fflush(stdout);
        for (;;)
            pause();
    }
    if (strcmp(verb, "serve") == 0 && argc > 2)
        return serve(argv[2]);
    if (strcmp(verb, "epoll") == 0 && argc > 2)
        return epoll_loop(atoi(argv[2]));
    return 99;
}
