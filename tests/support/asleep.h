/* SPDX-License-Identifier: MIT
 *
 * Whether a thread sleeps in the kernel.
 */
#ifndef RP_TEST_ASLEEP_H
#define RP_TEST_ASLEEP_H

#include <fstream>
#include <string>

/* `directory`: /proc/PID, or /proc/PID/task/TID. */
inline bool is_asleep(const std::string &directory)
{
    /* "pid (comm) S …": asleep, not merely on the way in or out. */
    std::ifstream stat(directory + "/stat");
    std::string line;
    std::getline(stat, line);
    size_t end = line.rfind(')');
    return end != std::string::npos && end + 2 < line.size() && line[end + 2] == 'S';
}

#endif
