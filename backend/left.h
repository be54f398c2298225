/* SPDX-License-Identifier: MIT
 *
 * What the library has received (bytes, an error, accepted connections) and the watch
 * that is to report it does not hear of by a receive: it has moved to kernel epoll,
 * the receive was another set's, or its number is closed and others have the file.
 * Kernel epoll knows nothing of such bytes. So a set keeps a list of these watches, and
 * its waits report what is there beside what the kernel says.
 *
 *   NOT ──the library has something for it──→ NEWS ──reported, not level-triggered──→ TOLD
 *    ↑                                         │ ↑                                    │ │
 *    │                                         │ └──MOD, ADD, more came, a shutdown───┘ │
 *    └──a wait finds it read; the record goes──┴────────────────────────────────────────┘
 *
 * The list has those that are not NOT, in the order of their turns: who was reported
 * goes to its end, which makes small maxevents fair (a level-triggered one as NEWS). As a
 * whole it has its turn before the kernel's events and behind them, alternately
 * (`left_last`).
 *
 * While one has news the wake fd stands in the identity (`left_told`), so that whoever
 * polls that hears of it; a wait takes the mark out.
 *
 * A *ghost* is in the list whose number is closed, while others have its file: the
 * registration goes on, unreachable, as the kernel's own, until the number comes back
 * with the same file. Its watch has no fd (-1) and is in no table; `ghost` names the
 * stream whose bytes it reports, by a record that may be recycled: hence the serial.
 *
 * All of this is under the set's lock. `set->left`, the list's head, is looked at without
 * it (once.h): with nothing in it a wait and a ctl have nothing to do with all this.
 */
#ifndef RP_LEFT_H
#define RP_LEFT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct rp_set;
struct rp_watch;
struct rp_fd;

enum rp_left { RP_LEFT_NOT, RP_LEFT_NEWS, RP_LEFT_TOLD };

/* Bits of what the library has for this fd, in whatever set. */
uint32_t rp_left_bits_at(int fd);
/* Of them, those that the watch is to be told of. */
uint32_t rp_left_news(const struct rp_watch *watch);

/* NOT → NEWS, if there is something. */
void rp_left_note(struct rp_set *set, struct rp_watch *watch);
void rp_left_note_all(struct rp_set *set);
/* TOLD → NEWS. */
void rp_left_renew(struct rp_set *set, struct rp_watch *watch);
/* NEWS → TOLD. */
void rp_left_told(struct rp_watch *watch);
/* → NOT. */
void rp_left_forget(struct rp_set *set, struct rp_watch *watch);
/* Something may have been read: who polls the set shall not hear of it any more. */
void rp_left_settle(struct rp_set *set);

/* The number is about to be closed. False: there is nothing that the kernel would not
 * tell by itself. */
bool rp_left_make_ghost(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry);
/* The number may be of the same file again: then calls reach the registration. */
void rp_left_recall_ghost(struct rp_set *set, int fd);

/* ---- a wait's: in this order, the first or the last in turn. */

/* Whether those of the list come behind the kernel's events this time. */
bool rp_left_comes_last(struct rp_set *set);
/* Reports of the list, at most `room`. */
unsigned rp_left_take(struct rp_set *set, struct epoll_event *events, unsigned room);
/* The kernel's events of such watches tell of those bytes too, told of before or not. */
void rp_left_add(struct rp_set *set, struct epoll_event *events, unsigned count);
/* What stands in both, among `left` events at `at` and elsewhere, is one event. How
 * many there are. */
unsigned rp_left_merge(struct epoll_event *events, unsigned at, unsigned left, unsigned count);

#endif
