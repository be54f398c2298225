/* SPDX-License-Identifier: MIT
 *
 * Datagrams: what programs lean on.
 */
#include "support.h"
