/* SPDX-License-Identifier: MIT
 *
 * `ringpoll bench [NAME] ARGUMENTS`: becomes the bench driver, a program of its
 * own (it wants libevent, which nothing else here needs). It is told where this
 * installation's shim is, so that it measures that one.
 */
#include "command.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int print_help(void)
{
    fputs("Usage: ringpoll bench [all|NAME] [OPTION]...\n"
          "Measure ringpoll against epoll on this machine: cycles and system calls per\n"
          "request, side by side.\n\n"
          "  readiness    the ring polls, the program reads and writes\n"
          "  completion   the ring receives and sends, too: by profile, program, number of\n"
          "               connections and size of messages\n"
          "  memory       bytes per idle connection\n"
          "  libuv        a libuv that was built --with-uring, beside a stock one\n"
          "  all          all of these (the default), of libuv where RINGPOLL_LIBUV_DIR is\n\n"
          "'ringpoll bench all --help' tells the options. See ringpoll-bench(1).\n",
          stdout);
    return finish_output();
}

int bench_main(int argc, char **argv)
{
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return print_help();
    char driver[PATH_MAX];
    if (!find_bench_driver(driver, sizeof(driver)))
        return STATUS_NOT_FOUND;
    if (setting("RINGPOLL_PRELOAD") == NULL) {
        char shim[PATH_MAX];
        if (!find_preload(shim, sizeof(shim)))
            return STATUS_REFUSED;
        if (setenv("RINGPOLL_PRELOAD", shim, 1) != 0) {
            complain("no memory for the environment.");
            return STATUS_REFUSED;
        }
    }
    argv[0] = driver;
    execv(driver, argv);
    int error = errno;
    complain("cannot start '%s': %s.", driver, strerror(error));
    return error == ENOENT ? STATUS_NOT_FOUND : STATUS_CANNOT_RUN;
}
