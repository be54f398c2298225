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

#ifdef __cplusplus
}
#endif

#endif
