/* SPDX-License-Identifier: MIT
 *
 * Where the shim, the bench driver, the files of programs and the macros are. Looked for in this order:
 *
 *   1. what RINGPOLL_PRELOAD, RINGPOLL_BENCH or RINGPOLL_MACROS names; that or nothing (the
 *      files of programs have no such variable)
 *   2. the build tree, when this executable lies in one (a directory `tools`,
 *      or libtool's `tools/.libs`)
 *   3. beside this executable, as far from it as the installation put it: so a
 *      staged (DESTDIR) and a moved installation find their own parts and not
 *      those of another one
 *   4. the directory that was configured
 */
#include "command.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef RINGPOLL_BINDIR
#define RINGPOLL_BINDIR "/usr/local/bin"
#endif
#ifndef RINGPOLL_PKGLIBDIR
#define RINGPOLL_PKGLIBDIR "/usr/local/lib/ringpoll"
#endif
#ifndef RINGPOLL_PKGLIBEXECDIR
#define RINGPOLL_PKGLIBEXECDIR "/usr/local/libexec/ringpoll"
#endif
#ifndef RINGPOLL_PKGDATADIR
#define RINGPOLL_PKGDATADIR "/usr/local/share/ringpoll"
#endif
#ifndef RINGPOLL_ACLOCALDIR
#define RINGPOLL_ACLOCALDIR "/usr/local/share/aclocal"
#endif
#ifndef RINGPOLL_CONFDIR
#define RINGPOLL_CONFDIR "/usr/local/etc/ringpoll"
#endif

struct part {
    const char *what;        /* for the sentence */
    const char *variable;    /* overrides the rest; NULL: none, and missing it is no complaint */
    const char *in_build[3]; /* below the top of the build tree; ends with NULL */
    const char *directory;   /* configured */
    const char *name;        /* in it */
    int access;              /* R_OK, X_OK */
};

static const struct part preload = {
    .what = "the shim",
    .variable = "RINGPOLL_PRELOAD",
    .in_build = {"adapters/preload/.libs/libringpoll-preload.so", NULL},
    .directory = RINGPOLL_PKGLIBDIR,
    .name = "libringpoll-preload.so",
    .access = R_OK,
};

static const struct part bench_driver = {
    .what = "the bench driver",
    .variable = "RINGPOLL_BENCH",
    .in_build = {"bench/ringpoll-bench", NULL},
    .directory = RINGPOLL_PKGLIBEXECDIR,
    .name = "ringpoll-bench",
    .access = X_OK,
};

static const struct part macros = {
    .what = "the macro file",
    .variable = "RINGPOLL_MACROS",
    .in_build = {"tools/share/ringpoll.m4", NULL},
    .directory = RINGPOLL_ACLOCALDIR,
    .name = "ringpoll.m4",
    .access = R_OK,
};

static const struct part own_programs = {
    .what = "the file of programs",
    .in_build = {"tools/share/programs.conf", NULL},
    .directory = RINGPOLL_PKGDATADIR,
    .name = "programs.conf",
    .access = R_OK,
};

static const struct part system_programs = {
    .what = "the system's file of programs",
    .in_build = {NULL},
    .directory = RINGPOLL_CONFDIR,
    .name = "programs.conf",
    .access = R_OK,
};

static bool is_usable_file(const char *path, int mode)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return false;
    if (!S_ISREG(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : EACCES;
        return false;
    }
    return access(path, mode) == 0;
}

/* The directory of this executable, without a '/' at its end. */
static bool own_directory(char directory[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", directory, PATH_MAX - 1);
    if (length <= 0)
        return false;
    directory[length] = '\0';
    char *slash = strrchr(directory, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

/* Cuts `tail` (it begins with '/') off the end of text, if it is there. */
static bool cut_tail(char *text, const char *tail)
{
    size_t length = strlen(text), cut = strlen(tail);
    if (cut > length || strcmp(text + length - cut, tail) != 0)
        return false;
    text[length - cut] = '\0';
    return true;
}

static bool join(char *path, size_t size, const char *directory, const char *name)
{
    int length = snprintf(path, size, "%s/%s", directory, name);
    return length > 0 && (size_t)length < size;
}

static bool find_in_build_tree(const struct part *part, const char *directory, char *path, size_t size)
{
    char top[PATH_MAX];
    snprintf(top, sizeof(top), "%s", directory);
    if (!cut_tail(top, "/tools/.libs") && !cut_tail(top, "/tools"))
        return false;
    for (const char *const *name = part->in_build; *name != NULL; name++) {
        if (join(path, size, top, *name) && is_usable_file(path, part->access))
            return true;
    }
    return false;
}

static bool find_beside(const struct part *part, const char *directory, char *path, size_t size)
{
    /* The part of both configured directories that differs: /usr/local/bin and
     * /usr/local/lib/ringpoll differ in /bin and /lib/ringpoll. */
    static const char commands[] = RINGPOLL_BINDIR;
    size_t same = 0;
    for (size_t i = 0; commands[i] != '\0' && commands[i] == part->directory[i]; i++) {
        if (commands[i] == '/')
            same = i;
    }
    char root[PATH_MAX], below[PATH_MAX];
    snprintf(root, sizeof(root), "%s", directory);
    if (commands[same] != '/' || part->directory[same] != '/' || !cut_tail(root, &commands[same]))
        return false;
    int length = snprintf(below, sizeof(below), "%s%s", root, part->directory + same);
    if (length < 0 || (size_t)length >= sizeof(below))
        return false;
    return join(path, size, below, part->name) && is_usable_file(path, part->access);
}

static bool find_part(const struct part *part, char *path, size_t size)
{
    char directory[PATH_MAX];
    const char *named = part->variable != NULL ? setting(part->variable) : NULL;
    if (named != NULL) {
        char resolved[PATH_MAX];
        if (!is_usable_file(named, part->access) || realpath(named, resolved) == NULL) {
            complain("%s: %s '%s' cannot be used: %s.", part->variable, part->what, named, strerror(errno));
            return false;
        }
        int length = snprintf(path, size, "%s", resolved);
        return length > 0 && (size_t)length < size;
    }
    if (own_directory(directory)) {
        if (find_in_build_tree(part, directory, path, size) || find_beside(part, directory, path, size))
            return true;
    }
    if (join(path, size, part->directory, part->name) && is_usable_file(path, part->access))
        return true;
    if (part->variable == NULL)
        return false;
    complain("%s is not installed: '%s/%s': %s; %s may name another.", part->what, part->directory, part->name,
             strerror(errno), part->variable);
    return false;
}

bool find_preload(char *path, size_t size)
{
    return find_part(&preload, path, size);
}

bool find_bench_driver(char *path, size_t size)
{
    return find_part(&bench_driver, path, size);
}

bool find_macros(char *path, size_t size)
{
    return find_part(&macros, path, size);
}

bool find_own_programs(char *path, size_t size)
{
    return find_part(&own_programs, path, size);
}

bool find_system_programs(char *path, size_t size)
{
    return find_part(&system_programs, path, size);
}
