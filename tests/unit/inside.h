/* SPDX-License-Identifier: MIT */
#ifndef TESTS_INSIDE_H
#define TESTS_INSIDE_H

#ifdef __cplusplus
extern "C" {
#endif

unsigned inside_slots_used(int epfd); /* of the table of registered files */
int inside_has_table(int epfd);
int inside_has_slot(int fd);
/* All that are left stand for `fd`. Owner thread. */
void inside_fill_table(int epfd, int fd);

/* Where the set's ring has a kernel thread: waits until that sleeps, so that the next
 * enter makes a system call, and has this thread raise the signal before it, once. */
void inside_raise_in_next_enter(int epfd, int signal);
/* 1: it was raised. Ends the watch. */
int inside_raised(void);

#ifdef __cplusplus
}
#endif

#endif
