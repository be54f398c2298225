/* SPDX-License-Identifier: MIT
 *
 * The `ringpoll` command: picks the subcommand; help and version; and the few
 * functions by which all of them speak. Nothing here knows what a ring is.
 */
#include "command.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

static const struct subcommand {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *summary;
} subcommands[] = {
    {"run", run_main, "run a program with its epoll on io_uring"},
    {"probe", probe_main, "say what this kernel's io_uring can do, and why not"},
    {"stat", stat_main, "show what ringpoll does in a running program"},
    {"bench", bench_main, "measure ringpoll against epoll on this machine"},
    {"integrate", integrate_main, "prepare a library's source tree for io_uring"},
};
#define SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

void complain(const char *format, ...)
{
    static const char prefix[] = "ringpoll: ";
    char line[8192];
    size_t used = sizeof(prefix) - 1;
    memcpy(line, prefix, used);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
    va_end(arguments);
    if (length > 0)
        used += (size_t)length < sizeof(line) - used - 1 ? (size_t)length : sizeof(line) - used - 2;
    /* A file name may hold a newline; the sentence stays one line. */
    for (size_t i = 0; i < used; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    }
    line[used++] = '\n';
    fflush(stdout);
    for (size_t done = 0; done < used;) {
        ssize_t written = write(STDERR_FILENO, line + done, used - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* nobody listens */
        done += (size_t)written;
    }
}

int finish_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return STATUS_OK;
    complain("cannot write to standard output: %s.", strerror(errno));
    return STATUS_NO;
}

void json_string(const char *text)
{
    if (text == NULL) {
        fputs("null", stdout);
        return;
    }
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c < ' ' || *c > '~')
            printf("\\u%04x", *c);
        else
            putchar(*c);
    }
    putchar('"');
}

int complain_of_option(const char *subcommand, int opt, char **argv)
{
    char shown[64];
    const char *what = argv[optind - 1];
    if (optopt > 0 && optopt < 0x100) { /* a short one; the values of long ones begin at 0x100 */
        snprintf(shown, sizeof(shown), "-%c", optopt);
        what = shown;
    }
    const char *space = *subcommand != '\0' ? " " : "";
    if (opt == ':')
        complain("the option '%s' needs a value (see 'ringpoll%s%s --help').", what, space, subcommand);
    else if (optopt >= 0x100) /* a long option that is known and takes no value */
        complain("the option '%s' takes no value (see 'ringpoll%s%s --help').", what, space, subcommand);
    else
        complain("'%s' is not an option of 'ringpoll%s%s' (see 'ringpoll%s%s --help').", what, space, subcommand,
                 space, subcommand);
    return STATUS_USAGE;
}

const char *errno_name(int error, char *buffer, size_t size)
{
    static const struct {
        int error;
        const char *name;
    } names[] = {
#define NAME(e) {e, #e}
        NAME(EPERM),     NAME(ENOENT),       NAME(EINTR),      NAME(EIO),        NAME(ENXIO),      NAME(E2BIG),
        NAME(EBADF),     NAME(EAGAIN),       NAME(ENOMEM),     NAME(EACCES),     NAME(EFAULT),     NAME(EBUSY),
        NAME(EEXIST),    NAME(ENODEV),       NAME(ENOTDIR),    NAME(EINVAL),     NAME(ENFILE),     NAME(EMFILE),
        NAME(ENOSPC),    NAME(ENOSYS),       NAME(ELOOP),      NAME(EOVERFLOW),  NAME(EBADFD),     NAME(EOPNOTSUPP),
        NAME(ENOBUFS),   NAME(ETIME),        NAME(ETIMEDOUT),  NAME(EALREADY),   NAME(ECANCELED),  NAME(ENOTSOCK),
        NAME(ECONNRESET), NAME(EPIPE),       NAME(ENODATA),    NAME(EPROTO),     NAME(EBADR),      NAME(EDOM),
        NAME(ERANGE),    NAME(EPROTONOSUPPORT), NAME(EAFNOSUPPORT), NAME(ENOTSUP),
#undef NAME
    };
    if (error < 0)
        error = -error;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (names[i].error == error)
            return names[i].name;
    }
    snprintf(buffer, size, "errno %d", error);
    return buffer;
}

static void print_usage(FILE *to)
{
    fputs("Usage: ringpoll COMMAND [OPTION]... [ARGUMENT]...\n"
          "       ringpoll --help | --version\n"
          "Put io_uring under programs written for epoll.\n\n"
          "Commands:\n",
          to);
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        fprintf(to, "  %-9s %s\n", subcommands[i].name, subcommands[i].summary);
    fputs("\n'ringpoll COMMAND --help' tells more, and so do ringpoll(1) and ringpoll(7).\n", to);
}

static int print_help(void)
{
    print_usage(stdout);
    return finish_output();
}

static int print_version(void)
{
    printf("ringpoll %s\n"
           "Licence: MIT. There is no warranty, to the extent permitted by law.\n",
           ringpoll_version());
    return finish_output();
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 0x100},
        {"version", no_argument, NULL, 0x101},
        {NULL, 0, NULL, 0},
    };
    static char help[] = "--help";
    opterr = 0;
    if (argc < 2) {
        print_usage(stderr);
        return STATUS_USAGE;
    }
    int opt = getopt_long(argc, argv, "+:hV", options, NULL);
    if (opt == 'h' || opt == 0x100)
        return print_help();
    if (opt == 'V' || opt == 0x101)
        return print_version();
    if (opt != -1)
        return complain_of_option("", opt, argv);
    if (optind >= argc) { /* `ringpoll --` */
        print_usage(stderr);
        return STATUS_USAGE;
    }
    char **rest = argv + optind;
    int count = argc - optind;
    optind = 0; /* glibc: start over, with the new argv */
    if (strcmp(rest[0], "help") == 0) {
        if (count == 1)
            return print_help();
        rest[0] = rest[1];
        rest[1] = help;
        count = 2;
    }
    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        if (strcmp(rest[0], subcommands[i].name) == 0)
            return subcommands[i].main(count, rest);
    }
    complain("'%s' is not a command of ringpoll; the commands are run, probe, stat, bench and"
             " integrate (see 'ringpoll --help').",
             rest[0]);
    return STATUS_USAGE;
}
