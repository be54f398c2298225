/* SPDX-License-Identifier: MIT
 *
 * What the parts of the `ringpoll` command share.
 *
 * The command is a thin thing on purpose: `run` and `bench` replace their own
 * process, so that pid, exit status and signals of what they start are its own,
 * and `probe` prints what the library finds out. It uses the public header
 * alone (but for `stat`, see look.c) and links the library's objects statically, so that it works from a
 * build tree, a staged and a moved installation without any library path.
 *
 * Exit statuses, the same for every subcommand:
 *   0, 1   the answer of the subcommand itself (`probe`: a ring, no ring; `stat`:
 *          something, nothing to show; `integrate`: a tree that is prepared, or not)
 *   2      the command line or a RINGPOLL variable is wrong
 *   125    the program was not started: what was required cannot be had, or
 *          the installation is incomplete; or it was not looked into
 *   126    the program was found and could not be started
 *   127    the program was not found
 * 125 to 127 are what env(1), nohup(1) and timeout(1) answer. From 2 on,
 * every status but the program's own goes with one sentence on stderr.
 */
#ifndef TOOLS_COMMAND_H
#define TOOLS_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATUS_OK 0
#define STATUS_NO 1
#define STATUS_USAGE 2
#define STATUS_REFUSED 125
#define STATUS_CANNOT_RUN 126
#define STATUS_NOT_FOUND 127

/* Each gets argv[0] = its own name and returns the exit status. */
int run_main(int argc, char **argv);
int probe_main(int argc, char **argv);
int stat_main(int argc, char **argv);
int bench_main(int argc, char **argv);
int integrate_main(int argc, char **argv);

/* ringpoll.c: one line on stderr, "ringpoll: " and the sentence, by one
 * write(2), so that it is not torn apart by what others write there. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Flushes stdout: STATUS_OK, or STATUS_NO with a sentence when the text did not
 * get out (a full disk). Call it last. */
int finish_output(void);
/* To stdout, quoted; NULL is null. */
void json_string(const char *text);
/* What getopt_long() left behind for an option that is wrong: says so, and
 * which subcommand's help tells more. `opt` is its return value. */
int complain_of_option(const char *subcommand, int opt, char **argv);
/* "EPERM" for 1; "errno 4711" for one without a name here. The buffer is used
 * for the latter only. */
const char *errno_name(int error, char *buffer, size_t size);
#define ERRNO_NAME_SIZE 24

/* settings.c: what may stand in the RINGPOLL variables. False, with a sentence
 * that names what was wrong and what is accepted. */
bool check_mode(const char *source, const char *word);
bool check_profile(const char *source, const char *word);
bool check_mask(const char *source, const char *text);
/* The same word, in static storage; NULL for one that is no profile. */
const char *profile_word(const char *word);
/* The words that RINGPOLL_MASK takes beside no-NAME; ends with NULL. */
extern const char *const mask_generations[];
/* The variable, or NULL when it is unset or empty, which mean the same. */
const char *setting(const char *name);

/* places.c: where the other parts of ringpoll are. True with the absolute path
 * of a readable file in path[size]; false, after a sentence, otherwise. */
bool find_preload(char *path, size_t size);
bool find_bench_driver(char *path, size_t size);
bool find_macros(char *path, size_t size); /* ringpoll.m4 */
/* Without a sentence: nobody needs these. */
bool find_own_programs(char *path, size_t size);
bool find_system_programs(char *path, size_t size);

/* engine.c: what a set of this process would run on. */
struct engine {
    bool is_ring;
    uint32_t reason; /* RINGPOLL_REASON_*: why it is kernel epoll */
    int error;       /* with RINGPOLL_REASON_NO_RING: negative errno */
};
void find_engine(struct engine *engine);

/* program.c: which file a command word stands for, and what will keep the
 * loader from preloading the shim into it. */
enum obstacle {
    OBSTACLE_NONE,
    OBSTACLE_STATIC,       /* no PT_INTERP: nothing is loaded into it */
    OBSTACLE_SETUID,       /* AT_SECURE: the loader ignores LD_PRELOAD … */
    OBSTACLE_SETGID,       /* … */
    OBSTACLE_CAPABILITIES, /* … */
    OBSTACLE_MACHINE,      /* for another ELF class, byte order or machine */
    OBSTACLE_LOADER,       /* started by another libc's loader */
};

struct program {
    char path[4096];      /* the file that exec gets */
    char runs[4096];      /* the ELF file that runs in the end: `path`, or the
                             interpreter of a script; "" when it is not known */
    char loader[256];     /* its PT_INTERP; "" for none */
    char missing[4096];   /* an interpreter or loader that is not there; "" */
    enum obstacle obstacle;
};

/* Searches PATH as execvp(3) does. STATUS_OK with the whole of *program set;
 * STATUS_NOT_FOUND or STATUS_CANNOT_RUN after a sentence. */
int find_program(const char *word, struct program *program);

/* programs.c: the profile that the files of programs have for this one, in static
 * storage, or NULL. False after a sentence: a file cannot be understood. */
bool find_profile(const char *word, const struct program *program, const char **ret_profile);

#endif
