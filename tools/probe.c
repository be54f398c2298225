/* SPDX-License-Identifier: MIT
 *
 * `ringpoll probe`: what the library finds out about this kernel by trying, for
 * people and (--json) for programs, and what explains each "no". It adds three
 * things to ringpoll_get_probe(): the settings that decide about io_uring, whether
 * they do so here or not; what each feature is good for; and what a set would
 * really run on, which is found out by making one and waiting on it, not by
 * guessing from the features.
 *
 * Exit status 0: sets run on a ring here. 1: they run on kernel epoll. It is
 * the question that `ringpoll run --require` asks, with the same answer.
 */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

/* By bit number. */
static const struct {
    const char *since; /* the kernel release that brought it */
    const char *gives;
} feature_notes[] = {
    {"5.1", "io_uring at all"},
    {"6.1", "completions only when the loop asks: exact, no spurious EINTR"},
    {"6.0", "the kernel may rely on one submitting thread"},
    {"5.19", "completions without an interrupt to the running loop"},
    {"5.19", "the loop sees waiting completions without a system call"},
    {"5.18", "one bad request does not hold up the others"},
    {"5.5", "room for more completions than requests"},
    {"5.6", "sizes above the kernel's limit are cut, not refused"},
    {"5.11", "a kernel thread submits (never a default)"},
    {"6.6", "one indirection less in each submission"},
    {"5.11", "timeout and signal mask in the wait itself"},
    {"5.5", "no completion is ever dropped"},
    {"5.18", "cheaper entry into the ring"},
    {"5.13", "a poll that stays armed"},
    {"5.13", "changing an armed poll"},
    {"5.17", "no completion for what nobody waits for"},
    {"5.19", "cancelling all requests of one fd"},
    {"6.0", "cancelling and waiting for it in one call"},
    {"5.19", "an accept that stays armed"},
    {"5.19", "buffers that the kernel picks from a ring"},
    {"6.0", "a receive that stays armed"},
    {"5.19", "a table of registered files that is filled as needed"},
    {"6.2", "sending without a copy"},
    {"6.15", "an idle loop does not look like waiting for a disk"},
    {"6.12", "a deadline instead of a timeout"},
    {"6.7", "a read that stays armed"},
    {"6.10", "several buffers in one receive"},
    {"6.9", "busy polling of a network device"},
    {"6.13", "a ring that grows"},
    {"7.0", "a receive on AF_UNIX that tells of an end right behind bytes"},
};
_Static_assert(sizeof(feature_notes) / sizeof(feature_notes[0]) == RINGPOLL_FEATURE_COUNT,
               "each feature has its note");

/* A number that may not be known or may have no limit. */
#define UNKNOWN INT64_MIN
#define UNLIMITED INT64_MAX

struct findings {
    struct utsname kernel;
    struct ringpoll_probe probe;
    int64_t uring_disabled;  /* kernel.io_uring_disabled */
    int64_t uring_group;     /* kernel.io_uring_group; -1: none */
    int64_t seccomp;         /* 0 none, 1 strict, 2 filter */
    int64_t seccomp_filters; /* how many */
    int64_t memlock_bytes, open_files; /* soft limits */
    bool is_off;             /* RINGPOLL=off */
    struct engine engine;
};

/* ---------------------------------------------------------------- finding */

static int64_t read_number(const char *file)
{
    char text[32];
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return UNKNOWN;
    ssize_t length = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (length <= 0)
        return UNKNOWN;
    text[length] = '\0';
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    return errno == 0 && end != text ? (int64_t)number : UNKNOWN;
}

static void read_seccomp(struct findings *findings)
{
    findings->seccomp = findings->seccomp_filters = UNKNOWN;
    FILE *status = fopen("/proc/self/status", "re");
    if (status == NULL)
        return;
    char line[256];
    while (fgets(line, sizeof(line), status) != NULL) {
        long long number;
        if (sscanf(line, "Seccomp: %lld", &number) == 1)
            findings->seccomp = number;
        else if (sscanf(line, "Seccomp_filters: %lld", &number) == 1)
            findings->seccomp_filters = number;
    }
    fclose(status);
}

static int64_t soft_limit(int resource)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0)
        return UNKNOWN;
    uint64_t current = limit.rlim_cur; /* 32 bits wide on some machines */
    return limit.rlim_cur == RLIM_INFINITY || current > INT64_MAX ? UNLIMITED : (int64_t)current;
}

static int find_all(struct findings *findings)
{
    memset(findings, 0, sizeof(*findings));
    uname(&findings->kernel);
    findings->probe.size = sizeof(findings->probe);
    int error = ringpoll_get_probe(&findings->probe);
    if (error < 0)
        return error;
    findings->uring_disabled = read_number("/proc/sys/kernel/io_uring_disabled");
    findings->uring_group = read_number("/proc/sys/kernel/io_uring_group");
    read_seccomp(findings);
    findings->memlock_bytes = soft_limit(RLIMIT_MEMLOCK);
    findings->open_files = soft_limit(RLIMIT_NOFILE);
    findings->is_off = setting("RINGPOLL") != NULL && strcmp(setting("RINGPOLL"), "off") == 0;
    if (findings->is_off)
        findings->engine = (struct engine){.reason = RINGPOLL_REASON_ASKED};
    else
        find_engine(&findings->engine);
    return 0;
}

/* ----------------------------------------------------------------- wording */

enum answer { ANSWER_NO, ANSWER_YES, ANSWER_MASKED };
static const char *const answer_words[] = {"no", "yes", "masked"};

static enum answer answer_of(const struct ringpoll_probe *probe, unsigned index)
{
    uint64_t bit = UINT64_C(1) << index;
    if ((probe->usable & bit) != 0)
        return ANSWER_YES;
    /* What the kernel has and the library does not use was taken away, by its
     * own word or with something that it depends on. */
    return (probe->kernel & bit) != 0 || (probe->masked & bit) != 0 ? ANSWER_MASKED : ANSWER_NO;
}

static const char *knob_word(uint32_t knob)
{
    static const char *const words[] = {"none", "kernel", "sysctl", "seccomp", "memlock", "mask", "files", "build"};
    return knob < sizeof(words) / sizeof(words[0]) ? words[knob] : "unknown";
}

/* One or two sentences on what explains the answer to io_uring_setup() and what
 * to do about it; "" when there is nothing to explain. */
static void explain(const struct findings *findings, char *text, size_t size)
{
    uint32_t knob = findings->probe.knob;
    if (answer_of(&findings->probe, 0) == ANSWER_MASKED)
        knob = RINGPOLL_KNOB_MASK;
    text[0] = '\0';
    switch (knob) {
    case RINGPOLL_KNOB_NONE:
        break;
    case RINGPOLL_KNOB_KERNEL:
        snprintf(text, size, "the kernel is older than 5.1 or built without CONFIG_IO_URING");
        break;
    case RINGPOLL_KNOB_SYSCTL:
        if (findings->uring_disabled == 1) {
            snprintf(text, size,
                     "kernel.io_uring_disabled is 1: only privileged processes and members of the group "
                     "kernel.io_uring_group (%" PRId64 ") may have a ring; 'sysctl kernel.io_uring_disabled=0' "
                     "allows it to all",
                     findings->uring_group == UNKNOWN ? -1 : findings->uring_group);
        } else if (findings->uring_disabled == 2) {
            snprintf(text, size,
                     "kernel.io_uring_disabled is 2: nobody may have a ring; 'sysctl kernel.io_uring_disabled=0' "
                     "allows it");
        } else {
            snprintf(text, size, "the sysctl kernel.io_uring_disabled");
        }
        break;
    case RINGPOLL_KNOB_SECCOMP:
        snprintf(text, size,
                 "a seccomp filter (or a security module): the default ones of Docker and containerd forbid "
                 "io_uring; a profile that allows io_uring_setup, io_uring_enter and io_uring_register is needed");
        break;
    case RINGPOLL_KNOB_MEMLOCK:
        snprintf(text, size,
                 "not enough lockable memory: RLIMIT_MEMLOCK ('ulimit -l'), to which kernels before 5.12 charge "
                 "a ring, or the memory limit of the control group");
        break;
    case RINGPOLL_KNOB_MASK:
        snprintf(text, size, "taken away by RINGPOLL_MASK");
        break;
    case RINGPOLL_KNOB_FILES:
        snprintf(text, size, "no file descriptor left: RLIMIT_NOFILE ('ulimit -n')");
        break;
    case RINGPOLL_KNOB_BUILD:
        snprintf(text, size, "ringpoll was configured --without-uring");
        break;
    default:
        snprintf(text, size, "%s", ringpoll_knob_text(knob));
        break;
    }
}

static const char *show_number(int64_t number, char *buffer, size_t size)
{
    if (number == UNKNOWN)
        return "not known";
    if (number == UNLIMITED)
        return "unlimited";
    snprintf(buffer, size, "%" PRId64, number);
    return buffer;
}

/* The features that a word of RINGPOLL_MASK takes away. */
static uint64_t mask_of(const char *word)
{
    uint64_t mask = 0;
    (void)ringpoll_mask_parse(word, &mask, NULL, NULL);
    return mask;
}

/* ------------------------------------------------------------- for people */

static void print_settings(const struct findings *findings)
{
    static const char *const modes[] = {"none", "strict", "filter"};
    char number[32];
    if (findings->uring_disabled == UNKNOWN)
        puts("sysctl    kernel.io_uring_disabled: this kernel has none");
    else
        printf("sysctl    kernel.io_uring_disabled = %" PRId64 "\n", findings->uring_disabled);
    if (findings->seccomp < 0 || findings->seccomp > 2)
        puts("seccomp   not known");
    else if (findings->seccomp == 2 && findings->seccomp_filters > 0)
        printf("seccomp   filter (%" PRId64 ")\n", findings->seccomp_filters);
    else
        printf("seccomp   %s\n", modes[findings->seccomp]);
    printf("memlock   %s bytes\n", show_number(findings->memlock_bytes, number, sizeof(number)));
    printf("files     %s\n", show_number(findings->open_files, number, sizeof(number)));
}

static void print_engine(const struct findings *findings)
{
    char buffer[ERRNO_NAME_SIZE];
    const struct engine *engine = &findings->engine;
    if (engine->is_ring)
        puts("sets      run on a ring");
    else if (engine->error != 0)
        printf("sets      run on kernel epoll: %s (%s)\n", ringpoll_reason_text(engine->reason),
               errno_name(engine->error, buffer, sizeof(buffer)));
    else
        printf("sets      run on kernel epoll: %s\n", ringpoll_reason_text(engine->reason));
}

static void print_people(const struct findings *findings)
{
    const struct ringpoll_probe *probe = &findings->probe;
    char text[512], buffer[ERRNO_NAME_SIZE];
    explain(findings, text, sizeof(text));
    printf("kernel    %s %s %s\n", findings->kernel.sysname, findings->kernel.release, findings->kernel.machine);
    printf("ringpoll  %s\n", ringpoll_version());
    printf("io_uring  %s", answer_words[answer_of(probe, 0)]);
    if (probe->error != 0)
        printf(" (%s)", errno_name(probe->error, buffer, sizeof(buffer)));
    printf("%s%s\n", *text != '\0' ? ": " : "", text);
    print_settings(findings);
    print_engine(findings);

    printf("\n%-18s %-7s %-11s %-6s %s\n", "feature", "here", "errno", "since", "it gives");
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        enum answer answer = answer_of(probe, i);
        const char *why = "";
        if (answer == ANSWER_NO && probe->feature_error[i] != 0)
            why = errno_name(probe->feature_error[i], buffer, sizeof(buffer));
        printf("%-18s %-7s %-11s %-6s %s\n", ringpoll_feature_name(i), answer_words[answer], why,
               feature_notes[i].since, feature_notes[i].gives);
    }

    const char *mask = setting("RINGPOLL_MASK");
    printf("\nRINGPOLL_MASK is %s%s%s. Its words, separated by commas: no-NAME for each name above, and\n",
           mask != NULL ? "'" : "", mask != NULL ? mask : "not set", mask != NULL ? "'" : "");
    for (const char *const *word = mask_generations; *word != NULL; word++) {
        uint64_t taken = mask_of(*word);
        int column = printf("  %-7s =", *word);
        for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
            if ((taken >> i & 1) == 0)
                continue;
            snprintf(text, sizeof(text), "no-%s", ringpoll_feature_name(i));
            if (column + 1 + (int)strlen(text) > 78)
                column = printf("\n%11s", "") - 1;
            column += printf(" %s", text);
        }
        putchar('\n');
    }
}

/* ----------------------------------------------------------- for programs */

static void json_number(int64_t number)
{
    if (number == UNKNOWN || number == UNLIMITED)
        fputs("null", stdout);
    else
        printf("%" PRId64, number);
}

/* The errno's number and name, positive as errno.h has it; 0 and null for none. */
static void json_errno(int error)
{
    char buffer[ERRNO_NAME_SIZE];
    printf("\"errno\": %d, \"error\": ", error < 0 ? -error : error);
    json_string(error == 0 ? NULL : errno_name(error, buffer, sizeof(buffer)));
}

static void json_names(uint64_t features, const char *prefix)
{
    const char *separator = "";
    putchar('[');
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        if ((features >> i & 1) == 0)
            continue;
        printf("%s\"%s%s\"", separator, prefix, ringpoll_feature_name(i));
        separator = ", ";
    }
    putchar(']');
}

static const char *json_bool(bool value)
{
    return value ? "true" : "false";
}

static void print_json(const struct findings *findings)
{
    const struct ringpoll_probe *probe = &findings->probe;
    static const char *const seccomp_modes[] = {"none", "strict", "filter"};
    char text[512];
    explain(findings, text, sizeof(text));

    printf("{\n  \"ringpoll\": \"%s\",\n  \"kernel\": {\"system\": ", ringpoll_version());
    json_string(findings->kernel.sysname);
    fputs(", \"release\": ", stdout);
    json_string(findings->kernel.release);
    fputs(", \"machine\": ", stdout);
    json_string(findings->kernel.machine);
    printf("},\n  \"io_uring\": {\"state\": \"%s\", ", answer_words[answer_of(probe, 0)]);
    json_errno(probe->error);
    printf(", \"knob\": \"%s\", \"explanation\": ",
           knob_word(answer_of(probe, 0) == ANSWER_MASKED ? RINGPOLL_KNOB_MASK : probe->knob));
    json_string(*text != '\0' ? text : NULL);

    fputs("},\n  \"settings\": {\"io_uring_disabled\": ", stdout);
    json_number(findings->uring_disabled);
    fputs(", \"io_uring_group\": ", stdout);
    json_number(findings->uring_group);
    fputs(", \"seccomp\": ", stdout);
    json_string(findings->seccomp >= 0 && findings->seccomp <= 2 ? seccomp_modes[findings->seccomp] : NULL);
    fputs(", \"seccomp_filters\": ", stdout);
    json_number(findings->seccomp_filters);
    fputs(", \"memlock_bytes\": ", stdout);
    json_number(findings->memlock_bytes);
    fputs(", \"open_files\": ", stdout);
    json_number(findings->open_files);

    const struct engine *engine = &findings->engine;
    printf("},\n  \"sets\": {\"engine\": \"%s\", \"reason\": ", engine->is_ring ? "ring" : "kernel");
    json_string(engine->is_ring ? NULL : ringpoll_reason_text(engine->reason));
    fputs(", ", stdout);
    json_errno(engine->is_ring ? 0 : engine->error);

    fputs("},\n  \"features\": [", stdout);
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        uint64_t bit = UINT64_C(1) << i;
        enum answer answer = answer_of(probe, i);
        printf("%s\n    {\"name\": \"%s\", \"state\": \"%s\", \"kernel\": %s, \"masked\": %s, \"usable\": %s, ",
               i == 0 ? "" : ",", ringpoll_feature_name(i), answer_words[answer],
               json_bool((probe->kernel & bit) != 0), json_bool((probe->masked & bit) != 0),
               json_bool((probe->usable & bit) != 0));
        json_errno(answer == ANSWER_NO ? probe->feature_error[i] : 0);
        printf(", \"since\": \"%s\", \"gives\": ", feature_notes[i].since);
        json_string(feature_notes[i].gives);
        putchar('}');
    }

    fputs("\n  ],\n  \"mask\": {\"RINGPOLL_MASK\": ", stdout);
    json_string(setting("RINGPOLL_MASK"));
    fputs(", \"words\": ", stdout);
    json_names((UINT64_C(1) << RINGPOLL_FEATURE_COUNT) - 1, "no-");
    fputs(", \"kernels\": {", stdout);
    for (const char *const *word = mask_generations; *word != NULL; word++) {
        printf("%s\n    \"%s\": ", word == mask_generations ? "" : ",", *word);
        json_names(mask_of(*word), "no-");
    }
    fputs("\n  }}\n}\n", stdout);
}

static int print_help(void)
{
    fputs("Usage: ringpoll probe [--json]\n"
          "Say what this kernel's io_uring can do, which of it is masked, and where the\n"
          "answer is no, which setting explains it.\n\n"
          "      --json   for programs\n"
          "  -h, --help   print this and exit\n\n"
          "RINGPOLL_MASK takes features away; the words it takes are listed.\n\n"
          "Exit status: 0 if sets run on a ring here, 1 if they run on kernel epoll, 2 for\n"
          "a wrong option or variable. See ringpoll-probe(1).\n",
          stdout);
    return finish_output();
}

int probe_main(int argc, char **argv)
{
    enum { HELP = 0x100, JSON };
    static const struct option options[] = {
        {"help", no_argument, NULL, HELP},
        {"json", no_argument, NULL, JSON},
        {NULL, 0, NULL, 0},
    };
    bool json = false;
    int opt;
    while ((opt = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        switch (opt) {
        case 'h':
        case HELP:
            return print_help();
        case JSON:
            json = true;
            break;
        default:
            return complain_of_option("probe", opt, argv);
        }
    }
    if (optind < argc) {
        complain("'ringpoll probe' takes no argument such as '%s' (see 'ringpoll probe --help').", argv[optind]);
        return STATUS_USAGE;
    }
    if (setting("RINGPOLL") != NULL && !check_mode("RINGPOLL", setting("RINGPOLL")))
        return STATUS_USAGE;
    if (setting("RINGPOLL_MASK") != NULL && !check_mask("RINGPOLL_MASK", setting("RINGPOLL_MASK")))
        return STATUS_USAGE;
    struct findings findings;
    int error = find_all(&findings);
    if (error < 0) {
        complain("the probe itself failed: %s.", strerror(-error));
        return STATUS_REFUSED;
    }
    if (json)
        print_json(&findings);
    else
        print_people(&findings);
    int status = finish_output();
    if (status != STATUS_OK)
        return STATUS_REFUSED;
    return findings.engine.is_ring ? STATUS_OK : STATUS_NO;
}
