/* SPDX-License-Identifier: MIT
 *
 * `ringpoll run`: puts the shim into LD_PRELOAD, what was asked for into the
 * RINGPOLL variables, and becomes the program. There is no process between the
 * caller and the program, hence nothing to pass on: pid, exit status, signals,
 * job control and the controlling terminal are the program's own.
 *
 * The program always starts where it can. What keeps it from being accelerated
 * is said in one sentence beforehand and is a refusal (125) only when a ring is
 * required. All that was typed wrong is found before anything is looked for.
 */
#include "command.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

extern char **environ;

static int print_help(void)
{
    fputs("Usage: ringpoll run [OPTION]... [--] PROGRAM [ARGUMENT]...\n"
          "Run PROGRAM with its epoll on io_uring.\n\n"
          "      --profile=PROFILE  readiness, safe or throughput (default: what the files\n"
          "                         of programs say of PROGRAM, or else safe)\n"
          "      --require          refuse to run where no ring can be had\n"
          "      --stats[=FILE]     at exit report what was done to stderr, or append it\n"
          "                         to FILE; %p in FILE is the pid\n"
          "  -h, --help             print this and exit\n\n"
          "Environment: RINGPOLL=off|auto|require, RINGPOLL_PROFILE, RINGPOLL_MASK and\n"
          "RINGPOLL_STATS mean what the options do; options go first.\n\n"
          "Files of programs, lines \"PROGRAM profile=PROFILE\", the first that fits counts:\n"
          "$XDG_CONFIG_HOME/ringpoll/programs.conf (or ~/.config/...), the system's and the\n"
          "one that comes with ringpoll.\n\n"
          "Exit status: PROGRAM's own; 2 for a wrong option, variable or file, 125 if a\n"
          "ring is required and cannot be had or ringpoll is not installed completely,\n"
          "126 if PROGRAM cannot be started, 127 if it is not found. See ringpoll-run(1).\n",
          stdout);
    return finish_output();
}

struct request {
    const char *mode;    /* NULL: leave the variable alone */
    const char *profile; /* NULL: leave the variable alone */
    const char *stats;   /* NULL: leave the variable alone */
};

/* The program may change its directory (daemons do), so FILE is made absolute;
 * and whether it can be written is looked at now, when somebody reads the
 * answer. */
static bool check_stats_file(const char *file, char *absolute, size_t size)
{
    char directory[PATH_MAX];
    int length;
    if (*file == '\0') {
        complain("--stats= needs the name of a file (--stats alone reports to standard error).");
        return false;
    }
    if (*file == '/' || strcmp(file, "stderr") == 0) {
        length = snprintf(absolute, size, "%s", file);
    } else if (getcwd(directory, sizeof(directory)) != NULL) {
        length = snprintf(absolute, size, "%s/%s", directory, file);
    } else {
        complain("--stats: the current directory has no name (%s), so '%s' has none: give an absolute one.",
                 strerror(errno), file);
        return false;
    }
    if (length < 0 || (size_t)length >= size) {
        complain("--stats: the name of the file is too long.");
        return false;
    }
    if (strcmp(absolute, "stderr") == 0)
        return true;
    /* A file that is there must be writable, one that is not its directory. (A
     * name with %p in it is most likely not there.) */
    struct stat st;
    int error = 0;
    if (stat(absolute, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            error = EISDIR;
        else if (access(absolute, W_OK) != 0)
            error = errno;
    } else if (errno != ENOENT || absolute[strlen(absolute) - 1] == '/') {
        error = errno;
    } else {
        snprintf(directory, sizeof(directory), "%s", absolute);
        char *slash = strrchr(directory, '/');
        slash[slash == directory ? 1 : 0] = '\0';
        if (access(directory, W_OK | X_OK) != 0)
            error = errno;
    }
    if (error == 0)
        return true;
    complain("--stats: cannot write '%s': %s.", file, strerror(error));
    return false;
}

/* What keeps the shim out of the program, as one sentence without its end. */
static bool describe_obstacle(const struct program *program, char *text, size_t size)
{
    const char *secure = NULL;
    switch (program->obstacle) {
    case OBSTACLE_NONE:
        return false;
    case OBSTACLE_STATIC:
        snprintf(text, size, "'%s' is statically linked: nothing can be preloaded into it", program->runs);
        return true;
    case OBSTACLE_SETUID:
        secure = "is setuid";
        break;
    case OBSTACLE_SETGID:
        secure = "is setgid";
        break;
    case OBSTACLE_CAPABILITIES:
        secure = "has file capabilities";
        break;
    case OBSTACLE_MACHINE:
        snprintf(text, size, "'%s' is built for another machine than ringpoll: the shim does not fit into it",
                 program->runs);
        return true;
    case OBSTACLE_LOADER:
        snprintf(text, size, "'%s' is built for another C library ('%s'): the shim does not fit into it",
                 program->runs, program->loader);
        return true;
    }
    snprintf(text, size, "'%s' %s: the loader preloads nothing into a privileged program", program->runs, secure);
    return true;
}

/* LD_PRELOAD as it is, with the shim before it unless it is there already. */
static bool preload(const char *shim)
{
    const char *old = setting("LD_PRELOAD");
    if (shim[strcspn(shim, ": \t")] != '\0') {
        complain("the shim '%s' cannot be preloaded: its name has a colon or a blank.", shim);
        return false;
    }
    if (old == NULL)
        return setenv("LD_PRELOAD", shim, 1) == 0;
    size_t length = strlen(shim);
    for (const char *word = old; *word != '\0'; word += strspn(word, ": \t")) {
        size_t word_length = strcspn(word, ": \t");
        if (word_length == length && strncmp(word, shim, length) == 0)
            return true;
        word += word_length;
    }
    size_t size = length + 1 + strlen(old) + 1;
    char *value = malloc(size);
    if (value == NULL)
        return false;
    snprintf(value, size, "%s:%s", shim, old);
    int result = setenv("LD_PRELOAD", value, 1);
    free(value);
    return result == 0;
}

/* What --require asks for, found out while somebody can still be told. The shim
 * asks again when the program makes its first set. */
static bool ring_can_be_had(void)
{
    struct engine engine;
    find_engine(&engine);
    if (engine.is_ring)
        return true;
    char buffer[ERRNO_NAME_SIZE], cause[256] = "";
    struct ringpoll_probe found = {.size = sizeof(found)};
    if (engine.error != 0 && ringpoll_get_probe(&found) == 0) {
        snprintf(cause, sizeof(cause), " (%s: %s)", errno_name(engine.error, buffer, sizeof(buffer)),
                 ringpoll_knob_text(found.knob));
    }
    complain("a ring is required and cannot be had: %s%s; 'ringpoll probe' tells more.",
             ringpoll_reason_text(engine.reason), cause);
    return false;
}

static bool apply(const struct request *request)
{
    return (request->mode == NULL || setenv("RINGPOLL", request->mode, 1) == 0) &&
           (request->profile == NULL || setenv("RINGPOLL_PROFILE", request->profile, 1) == 0) &&
           (request->stats == NULL || setenv("RINGPOLL_STATS", request->stats, 1) == 0);
}

/* Does not come back when it works. As with execvp(3), a file in no known
 * format is a script of the shell's. */
static int become(const struct program *program, char **argv)
{
    execve(program->path, argv, environ);
    int error = errno;
    if (error == ENOEXEC && program->runs[0] == '\0') {
        size_t count = 0;
        while (argv[count] != NULL)
            count++;
        char **shell = calloc(count + 2, sizeof(*shell));
        if (shell != NULL) {
            static char name[] = "/bin/sh";
            char path[sizeof(program->path)];
            memcpy(path, program->path, sizeof(path));
            shell[0] = name;
            shell[1] = path;
            memcpy(shell + 2, argv + 1, count * sizeof(*argv)); /* with the NULL */
            execve(name, shell, environ);
            free(shell);
        }
    }
    if (error == ENOENT && program->missing[0] != '\0')
        complain("'%s' cannot be started: its interpreter '%s' is not there.", program->path, program->missing);
    else
        complain("'%s' cannot be started: %s.", program->path, strerror(error));
    return STATUS_CANNOT_RUN;
}

int run_main(int argc, char **argv)
{
    enum { HELP = 0x100, PROFILE, REQUIRE, STATS };
    static const struct option options[] = {
        {"help", no_argument, NULL, HELP},
        {"profile", required_argument, NULL, PROFILE},
        {"require", no_argument, NULL, REQUIRE},
        {"stats", optional_argument, NULL, STATS},
        {NULL, 0, NULL, 0},
    };
    struct request request = {NULL, NULL, NULL};
    char stats_file[PATH_MAX];
    int opt;
    while ((opt = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        switch (opt) {
        case 'h':
        case HELP:
            return print_help();
        case PROFILE:
            if (!check_profile("--profile", optarg))
                return STATUS_USAGE;
            request.profile = optarg;
            break;
        case REQUIRE:
            request.mode = "require";
            break;
        case STATS:
            request.stats = "stderr";
            if (optarg != NULL) {
                if (!check_stats_file(optarg, stats_file, sizeof(stats_file)))
                    return STATUS_USAGE;
                request.stats = stats_file;
            }
            break;
        default:
            return complain_of_option("run", opt, argv);
        }
    }
    const char *mode = request.mode;
    if (mode == NULL) {
        mode = setting("RINGPOLL") != NULL ? setting("RINGPOLL") : "auto";
        if (!check_mode("RINGPOLL", mode))
            return STATUS_USAGE;
    }
    if (request.profile == NULL && setting("RINGPOLL_PROFILE") != NULL &&
        !check_profile("RINGPOLL_PROFILE", setting("RINGPOLL_PROFILE")))
        return STATUS_USAGE;
    if (setting("RINGPOLL_MASK") != NULL && !check_mask("RINGPOLL_MASK", setting("RINGPOLL_MASK")))
        return STATUS_USAGE;
    if (optind >= argc) {
        complain("'ringpoll run' needs a program to run (see 'ringpoll run --help').");
        return STATUS_USAGE;
    }
    argv += optind;

    struct program program;
    int status = find_program(argv[0], &program);
    if (status != STATUS_OK)
        return status;
    bool required = strcmp(mode, "require") == 0;
    if (strcmp(mode, "off") == 0) {
        /* The program alone, without the shim: the way to find out whether
         * ringpoll is to blame. */
        if (request.stats != NULL)
            complain("RINGPOLL=off: '%s' runs without the shim, so nothing will be reported.", argv[0]);
        return apply(&request) ? become(&program, argv) : STATUS_REFUSED;
    }
    if (request.profile == NULL && setting("RINGPOLL_PROFILE") == NULL &&
        !find_profile(argv[0], &program, &request.profile))
        return STATUS_USAGE;
    char obstacle[9000];
    if (describe_obstacle(&program, obstacle, sizeof(obstacle))) {
        if (required) {
            complain("%s, and a ring is required.", obstacle);
            return STATUS_REFUSED;
        }
        complain("%s, so it runs on epoll.", obstacle);
    }
    if (required && !ring_can_be_had())
        return STATUS_REFUSED;
    /* A foreign loader would complain about the shim, or fail. The shim stays
     * in the environment of static and privileged programs: what they start may
     * be neither. */
    if (program.obstacle != OBSTACLE_MACHINE && program.obstacle != OBSTACLE_LOADER) {
        char shim[PATH_MAX];
        if (!find_preload(shim, sizeof(shim)) || !preload(shim))
            return STATUS_REFUSED;
    }
    if (!apply(&request)) {
        complain("no memory for the environment.");
        return STATUS_REFUSED;
    }
    return become(&program, argv);
}
