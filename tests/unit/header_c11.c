/* SPDX-License-Identifier: MIT
 *
 * The public header, first and alone, in strict C11; then used a little.
 */
#include <ringpoll/ringpoll.h>

const char *version_seen_from_c(void);
unsigned long sizes_seen_from_c(int which);

const char *version_seen_from_c(void)
{
    return ringpoll_version();
}

unsigned long sizes_seen_from_c(int which)
{
    switch (which) {
    case 0:
        return sizeof(struct ringpoll_options);
    case 1:
        return sizeof(struct ringpoll_probe);
    default:
        return sizeof(struct ringpoll_stats);
    }
}
