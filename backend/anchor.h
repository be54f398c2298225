/* SPDX-License-Identifier: MIT
 *
 * Where the counters are, for whoever reads them from outside the process.
 *
 * `ringpoll stat` reads the memory of the program that it looks at, which does
 * nothing for it: no thread, no socket, no signal, not one instruction. All that
 * the library has for this is one constant, `rp_anchor`, and an ELF note that says
 * how far behind itself that lies. The note is found through the program headers
 * that the loader has mapped, so it needs no symbol table and no file: it survives
 * strip, an upgrade of the installed file under the running program, another mount
 * namespace, and a library that was linked statically.
 *
 * The reader has the structures from the headers that it was compiled with. That
 * they are those of the library that it reads is what everything before `sets`
 * is there to prove: a difference means that it must not go on.
 */
#ifndef RP_ANCHOR_H
#define RP_ANCHOR_H

#include <stdint.h>

#define RP_ANCHOR_MAGIC "\x7fRPSTAT"
#define RP_ANCHOR_NOTE "ringpoll"
#define RP_ANCHOR_NOTE_TYPE 1u /* desc: one int32_t, from its own address to rp_anchor */

struct rp_set;
struct rp_fd;
struct ringpoll_stats;

struct rp_anchor {
    char magic[8];
    char version[16];    /* ringpoll_version() */
    uint32_t size;       /* of this structure */
    uint16_t layout[59]; /* sizes, and offsets of all that is read; see stats.c */
    const struct rp_anchor *self; /* a mapped file is no loaded one */
    /* The process's own. */
    struct rp_set *const *sets;
    const struct ringpoll_stats *retired;
    struct rp_fd *const *fd_pages; /* RP_FD_PAGES of them */
    const uint32_t *fork_epoch;
};

extern const struct rp_anchor rp_anchor;

#endif
