/* SPDX-License-Identifier: MIT
 *
 * The version of the library that runs, as opposed to the header's that the
 * program was compiled with. Both come from the same three numbers.
 */
#include <ringpoll/ringpoll.h>

#define TEXT_OF(number) #number
#define DOTTED(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

const char *ringpoll_version(void)
{
    return DOTTED(RINGPOLL_VERSION_MAJOR, RINGPOLL_VERSION_MINOR, RINGPOLL_VERSION_PATCH);
}
