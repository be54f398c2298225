/* SPDX-License-Identifier: MIT
 *
 * Starting the command and looking at what came of it.
 */
#ifndef TESTS_COMMAND_COMMAND_H
#define TESTS_COMMAND_COMMAND_H

#include <functional>
#include <map>
#include <string>
#include <sys/types.h>
#include <vector>

using Words = std::vector<std::string>;

struct Outcome {
    pid_t pid = -1;
    int status = -1; /* as of waitpid */
    std::string out, err;

    bool exited_with(int code) const;
    bool killed_by(int signal) const;
    /* How many lines stderr got. */
    size_t complaints() const;
    /* For failure messages. */
    std::string story() const;
};

/* One start of a program: its environment is the test's without any RINGPOLL
 * variable (but RINGPOLL_PRELOAD, if the build says where the shim is) and
 * without LD_PRELOAD, then changed by `environment` ("NAME=value", "NAME" takes
 * it out). */
struct Start {
    Words words; /* words[0] is a path */
    Words environment;
    std::string directory;            /* to start in; "": the test's own */
    std::function<void()> in_child;   /* last thing before exec */
    std::function<void(pid_t)> when_ready; /* called when stdout has had its first line */
};
Outcome start(const Start &how);

/* The command under test. */
std::string command();
/* tests/command/helper. */
std::string helper();
/* The shim of this build; "" when it has not been built. */
std::string shim();
/* `ringpoll words…` */
Outcome ringpoll(const Words &words, const Words &environment = {});

/* A directory that everybody may look into; gone, with all in it, at the end. */
class Scratch {
public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    const std::string &path() const { return directory; }
    std::string file(const std::string &name) const { return directory + "/" + name; }
    std::string write(const std::string &name, const std::string &content, unsigned mode) const;
    std::string copy(const std::string &from, const std::string &name, unsigned mode) const;
    void make_directories(const std::string &name) const;

private:
    std::string directory;
};

std::string read_file(const std::string &path);

#endif
