/* SPDX-License-Identifier: MIT
 *
 * From a command word to the file that will run, and what is in its way.
 *
 * LD_PRELOAD is a wish that the dynamic loader grants: there is none in a
 * static program, a privileged one's ignores it, and another machine's or
 * another libc's cannot use our shim. In each case the program would start and
 * silently run on epoll (or, with another libc's loader, not start at all), so
 * the case is found here, before exec, by reading what exec will read: the
 * search of execvp(3), "#!" lines, the ELF header and the program headers.
 *
 * Nothing here is a security check, and nothing decides whether the program can
 * run: that is the kernel's answer. A file that cannot be read or understood
 * has no obstacle. What the file is may change between this look and exec; then
 * a sentence was wrong, and nothing else.
 */
#include "command.h"

#include <elf.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

/* The kernel reads as much of a "#!" line, and follows as many of them. */
#define SCRIPT_LINE 256
#define SCRIPT_DEPTH 5

struct elf {
    bool known; /* an ELF executable that was understood */
    unsigned char class, data;
    uint16_t machine;
    bool has_loader;
    char loader[256];
};

static bool copy(char *to, size_t size, const char *from)
{
    size_t length = strlen(from);
    if (length >= size)
        return false;
    memcpy(to, from, length + 1);
    return true;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* ----------------------------------------------------------------- search */

/* 0 when exec would try this file; else the errno that it would give. */
static int why_not_executable(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return errno;
    if (!S_ISREG(st.st_mode))
        return EACCES;
    return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

/* As execvp(3): a word with a '/' is a path; else each directory of PATH, going
 * on after a file that may not be executed, which is remembered. 0 or errno. */
static int search(const char *word, char *path, size_t size)
{
    if (strchr(word, '/') != NULL) {
        if (!copy(path, size, word))
            return ENAMETOOLONG;
        return why_not_executable(path);
    }
    if (*word == '\0')
        return ENOENT;
    const char *directories = getenv("PATH");
    char standard[256];
    if (directories == NULL) {
        size_t needed = confstr(_CS_PATH, standard, sizeof(standard));
        directories = needed > 0 && needed <= sizeof(standard) ? standard : "/bin:/usr/bin";
    }
    bool forbidden = false;
    for (;;) {
        size_t length = strcspn(directories, ":");
        int printed = length == 0 ? snprintf(path, size, "%s", word)
                                  : snprintf(path, size, "%.*s/%s", (int)length, directories, word);
        if (printed > 0 && (size_t)printed < size) {
            int error = why_not_executable(path);
            if (error == 0)
                return 0;
            forbidden |= error == EACCES;
        }
        if (directories[length] == '\0')
            return forbidden ? EACCES : ENOENT;
        directories += length + 1;
    }
}

/* -------------------------------------------------------------------- ELF */

/* The two classes differ in the structures alone. */
#define READ_ELF(BITS)                                                                                        \
    static void read_elf##BITS(int fd, struct elf *elf)                                                       \
    {                                                                                                         \
        Elf##BITS##_Ehdr header;                                                                              \
        if (pread(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))                                 \
            return;                                                                                           \
        if (header.e_type != ET_EXEC && header.e_type != ET_DYN)                                              \
            return;                                                                                           \
        if (header.e_phentsize != sizeof(Elf##BITS##_Phdr) || header.e_phnum == 0)                            \
            return;                                                                                           \
        for (unsigned i = 0; i < header.e_phnum; i++) {                                                       \
            Elf##BITS##_Phdr segment;                                                                         \
            off_t at = (off_t)(header.e_phoff + (uint64_t)i * sizeof(segment));                               \
            if (pread(fd, &segment, sizeof(segment), at) != (ssize_t)sizeof(segment))                         \
                return;                                                                                       \
            if (segment.p_type != PT_INTERP)                                                                  \
                continue;                                                                                     \
            if (segment.p_filesz < 2 || segment.p_filesz >= sizeof(elf->loader))                              \
                return;                                                                                       \
            if (pread(fd, elf->loader, segment.p_filesz, (off_t)segment.p_offset) != (ssize_t)segment.p_filesz) \
                return;                                                                                       \
            elf->loader[segment.p_filesz] = '\0';                                                             \
            elf->has_loader = true;                                                                           \
        }                                                                                                     \
        elf->known = true;                                                                                    \
    }
READ_ELF(64)
READ_ELF(32)

static void read_elf(int fd, struct elf *elf)
{
    unsigned char identity[EI_NIDENT + 4];
    memset(elf, 0, sizeof(*elf));
    if (pread(fd, identity, sizeof(identity), 0) != (ssize_t)sizeof(identity) ||
        memcmp(identity, ELFMAG, SELFMAG) != 0)
        return;
    elf->class = identity[EI_CLASS];
    elf->data = identity[EI_DATA];
    const unsigned char *machine = identity + EI_NIDENT + 2; /* e_machine, in either class */
    elf->machine = elf->data == ELFDATA2MSB ? (uint16_t)(machine[0] << 8 | machine[1])
                                            : (uint16_t)(machine[1] << 8 | machine[0]);
    if (elf->data != (__BYTE_ORDER == __LITTLE_ENDIAN ? ELFDATA2LSB : ELFDATA2MSB))
        elf->known = true; /* enough to tell that it is not for us */
    else if (elf->class == ELFCLASS64)
        read_elf64(fd, elf);
    else if (elf->class == ELFCLASS32)
        read_elf32(fd, elf);
}

/* This executable: what the shim was built together with. */
static void read_own_elf(struct elf *elf)
{
    memset(elf, 0, sizeof(*elf));
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    read_elf(fd, elf);
    close(fd);
}

static bool same_file(const char *one, const char *other)
{
    struct stat a, b;
    return stat(one, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* The same loader by another way to it (/lib and /usr/lib, a symbolic link, a
 * store of packages) is as good. */
static bool same_loader(const char *theirs, const char *ours)
{
    return strcmp(base_name(theirs), base_name(ours)) == 0 || same_file(theirs, ours);
}

/* -------------------------------------------------------------- privilege */

/* A file capability makes exec a secure one, unless root runs it, who has them
 * all anyway. */
static bool has_file_capabilities(int fd)
{
    /* security.capability: revision and flags, then (permitted, inheritable)
     * pairs of 32 bits, little-endian. Only a permitted bit, which the process
     * gains, counts. */
    unsigned char value[64];
    ssize_t length = fgetxattr(fd, "security.capability", value, sizeof(value));
    for (ssize_t pair = 4; pair + 8 <= length && pair < 20; pair += 8) {
        if ((value[pair] | value[pair + 1] | value[pair + 2] | value[pair + 3]) != 0)
            return true;
    }
    return false;
}

/* Whether exec of this file sets AT_SECURE, and by what. */
static enum obstacle privilege_of(int fd)
{
    struct stat st;
    struct statvfs fs;
    if (fstat(fd, &st) != 0 || prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ||
        (fstatvfs(fd, &fs) == 0 && (fs.f_flag & ST_NOSUID) != 0))
        return OBSTACLE_NONE;
    if ((st.st_mode & S_ISUID) != 0 && st.st_uid != getuid())
        return OBSTACLE_SETUID;
    /* Without group execution S_ISGID once meant mandatory locking. */
    if ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != getgid())
        return OBSTACLE_SETGID;
    if (getuid() != 0 && has_file_capabilities(fd))
        return OBSTACLE_CAPABILITIES;
    return OBSTACLE_NONE;
}

/* ---------------------------------------------------------------- scripts */

/* The words of a "#!" line: the interpreter and all that follows it as one
 * argument, as Linux does. False when there is no such line. */
static bool read_script_line(int fd, char line[SCRIPT_LINE], char **ret_interpreter, char **ret_argument)
{
    ssize_t length = pread(fd, line, SCRIPT_LINE - 1, 0);
    if (length < 3 || line[0] != '#' || line[1] != '!')
        return false;
    line[length] = '\0';
    line[strcspn(line, "\n")] = '\0';
    char *begin = line + 2 + strspn(line + 2, " \t");
    char *end = begin + strcspn(begin, " \t");
    char *argument = end + strspn(end, " \t");
    *end = '\0';
    size_t tail = strlen(argument);
    while (tail > 0 && (argument[tail - 1] == ' ' || argument[tail - 1] == '\t'))
        argument[--tail] = '\0';
    *ret_interpreter = begin;
    *ret_argument = argument;
    return *begin != '\0';
}

/* "#!/usr/bin/env NAME" runs NAME in the end. False when the line is more than
 * that, or NAME is not there (then env says so). */
static bool env_runs(const char *interpreter, char *argument, char *path, size_t size)
{
    if (strcmp(base_name(interpreter), "env") != 0)
        return false;
    if (strncmp(argument, "-S", 2) == 0)
        argument += 2 + strspn(argument + 2, " \t");
    argument[strcspn(argument, " \t")] = '\0';
    if (*argument == '\0' || *argument == '-' || strchr(argument, '=') != NULL)
        return false;
    return search(argument, path, size) == 0;
}

/* Follows "#!" lines from program->path to an ELF file; says what it is. */
static void examine(struct program *program)
{
    struct elf own, elf;
    char file[sizeof(program->path)];
    read_own_elf(&own);
    memcpy(file, program->path, sizeof(file));
    for (int depth = 0; depth <= SCRIPT_DEPTH; depth++) {
        int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0) {
            /* An executable file need not be readable. */
            if (depth > 0 && (errno == ENOENT || errno == ENOTDIR))
                copy(program->missing, sizeof(program->missing), file);
            return;
        }
        char line[SCRIPT_LINE], *interpreter, *argument;
        if (read_script_line(fd, line, &interpreter, &argument)) {
            close(fd);
            if (!env_runs(interpreter, argument, file, sizeof(file)))
                copy(file, sizeof(file), interpreter);
            continue;
        }
        read_elf(fd, &elf);
        enum obstacle privilege = privilege_of(fd);
        close(fd);
        if (!elf.known)
            return; /* a text without "#!", or a format of binfmt_misc */
        memcpy(program->runs, file, sizeof(program->runs));
        if (elf.has_loader)
            memcpy(program->loader, elf.loader, sizeof(program->loader));
        if (own.known && (elf.class != own.class || elf.data != own.data || elf.machine != own.machine))
            program->obstacle = OBSTACLE_MACHINE;
        else if (!elf.has_loader && own.has_loader && same_file(file, own.loader))
            return; /* `/lib64/ld-linux-x86-64.so.2 PROGRAM`: the loader itself, which does preload */
        else if (!elf.has_loader)
            program->obstacle = OBSTACLE_STATIC;
        else if (elf.has_loader && access(elf.loader, F_OK) != 0)
            copy(program->missing, sizeof(program->missing), elf.loader);
        else if (elf.has_loader && own.has_loader && !same_loader(elf.loader, own.loader))
            program->obstacle = OBSTACLE_LOADER;
        else
            program->obstacle = privilege;
        return;
    }
}

int find_program(const char *word, struct program *program)
{
    memset(program, 0, sizeof(*program));
    int error = search(word, program->path, sizeof(program->path));
    if (error == 0) {
        examine(program);
        return STATUS_OK;
    }
    if (error == ENOENT || error == ENOTDIR) {
        if (strchr(word, '/') != NULL)
            complain("'%s' is not there: %s.", word, strerror(error));
        else
            complain("'%s' was not found in PATH.", word);
        return STATUS_NOT_FOUND;
    }
    struct stat st;
    if (strchr(word, '/') != NULL && stat(word, &st) == 0 && S_ISDIR(st.st_mode))
        error = EISDIR;
    complain("'%s' cannot be executed: %s.", word, strerror(error));
    return STATUS_CANNOT_RUN;
}
