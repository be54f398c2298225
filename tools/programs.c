/* SPDX-License-Identifier: MIT
 *
 * Which profile suits a program, by its name: small files that people can read.
 * The user's goes before the system's, and that before the one that is installed with
 * ringpoll; the first of them that names the program decides. A file that is not
 * there, or that this user may not read (a service keeps its starter's HOME), says
 * nothing; one with a bad line is an error, since what it meant to say is not known.
 */
#include "command.h"

#include <errno.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\r\n"

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static bool bad_line(const char *path, unsigned number, const char *what, const char *word)
{
    complain("%s:%u: %s '%s'; a line is 'PROGRAM profile=PROFILE', the profile readiness, safe or throughput, and "
             "'#' begins a comment.",
             path, number, what, word);
    return false;
}

/* A line without its comment, taken apart in place. True with *ret_pattern NULL for an
 * empty one. */
static bool read_line(const char *path, unsigned number, char *line, char **ret_pattern, const char **ret_profile)
{
    char *rest = NULL;
    line[strcspn(line, "#")] = '\0';
    char *pattern = strtok_r(line, BLANKS, &rest);
    *ret_pattern = pattern;
    if (pattern == NULL)
        return true;
    if (strchr(pattern, '=') != NULL || strchr(pattern, '/') != NULL)
        return bad_line(path, number, "not the name of a program:", pattern);
    char *setting = strtok_r(NULL, BLANKS, &rest);
    if (setting == NULL)
        return bad_line(path, number, "no profile for", pattern);
    if (strncmp(setting, "profile=", 8) != 0)
        return bad_line(path, number, "not a setting:", setting);
    *ret_profile = profile_word(setting + 8);
    if (*ret_profile == NULL)
        return bad_line(path, number, "not a profile:", setting + 8);
    char *more = strtok_r(NULL, BLANKS, &rest);
    return more == NULL || bad_line(path, number, "one setting too many:", more);
}

/* False after a sentence. *profile is set by the first line that fits; all are read. */
static bool look_in(const char *path, const struct program *program, const char *word, const char **profile)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        if (errno == ENOENT || errno == ENOTDIR || errno == EACCES)
            return true;
        complain("%s: cannot be read: %s.", path, strerror(errno));
        return false;
    }
    const char *by_word = NULL, *by_interpreter = NULL;
    char *line = NULL;
    size_t size = 0;
    bool good = true;
    for (unsigned number = 1; good && getline(&line, &size, file) >= 0; number++) {
        char *pattern;
        const char *found = NULL;
        good = read_line(path, number, line, &pattern, &found);
        if (!good || pattern == NULL)
            continue;
        if (by_word == NULL && fnmatch(pattern, base_name(word), 0) == 0)
            by_word = found;
        if (by_interpreter == NULL && program->runs[0] != '\0' && fnmatch(pattern, base_name(program->runs), 0) == 0)
            by_interpreter = found;
    }
    if (good && ferror(file)) {
        complain("%s: cannot be read: %s.", path, strerror(errno));
        good = false;
    }
    free(line);
    fclose(file);
    *profile = by_word != NULL ? by_word : by_interpreter;
    return good;
}

static bool user_file(char *path, size_t size)
{
    const char *home = setting("XDG_CONFIG_HOME"), *below = "";
    if (home == NULL || *home != '/') { /* a relative one is to be ignored */
        home = setting("HOME");
        below = "/.config";
    }
    if (home == NULL)
        return false;
    int length = snprintf(path, size, "%s%s/ringpoll/programs.conf", home, below);
    return length > 0 && (size_t)length < size;
}

bool find_profile(const char *word, const struct program *program, const char **ret_profile)
{
    bool (*const places[])(char *path, size_t size) = {user_file, find_system_programs, find_own_programs};
    const char *profile = NULL;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && profile == NULL; i++) {
        char path[PATH_MAX];
        if (places[i](path, sizeof(path)) && !look_in(path, program, word, &profile))
            return false;
    }
    *ret_profile = profile;
    return true;
}
