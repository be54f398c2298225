/* SPDX-License-Identifier: MIT
 *
 * What the random drivers share: worlds, processes that play scripts, and the
 * comparison of two.
 *
 * A world is a process of its own (the test's program as "--serve ENGINE"), so that
 * fds have the same numbers in both, a shim can be preloaded into one of them,
 * and a crash or a hang is a difference like any other. It reads a script, one
 * operation per line, plays it from nothing, answers each line with one line,
 * closes everything, and says whether anything was left.
 *
 * An operation that fails, or that makes no sense, is an answer too. So any subset
 * of a script is a script, which is what lets a failing one be made small by
 * leaving lines out. What the kernel does not answer alike twice is no difference:
 * before it is called one, the kernel's world plays the script ten times more and
 * must never have given the other's answers.
 */
#ifndef TESTS_SUPPORT_DIFFERENTIAL_H
#define TESTS_SUPPORT_DIFFERENTIAL_H

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/engine.h"

namespace support {

using Script = std::vector<std::string>;
using Log = std::vector<std::string>;

/* One script being played. */
class Player {
public:
    virtual ~Player() = default;
    virtual std::string play(const std::string &line) = 0;
    virtual void end() = 0; /* closes everything */
};

/* ------------------------------------------------------------------ the server */

/* Standard input: "run N", then N lines. Standard output: N answers, one line on
 * what was left over, "done". */
inline int serve(const std::function<std::unique_ptr<Player>()> &make, const std::function<Held()> &held_now)
{
    size_t fds_before = 0;
    int episodes = 0;
    char *line = nullptr;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        long count = 0;
        if (sscanf(line, "run %ld", &count) != 1)
            return 4;
        Script script;
        for (long i = 0; i < count; i++) {
            ssize_t length = getline(&line, &room, stdin);
            if (length <= 0)
                return 4;
            script.emplace_back(line, (size_t)length - 1);
        }
        auto player = make();
        for (auto &one : script) {
            fputs((player->play(one) + "\n").c_str(), stdout);
            /* A crash must not take the answers with it. */
            fflush(stdout);
        }
        player->end();
        player.reset();
        size_t fds = open_fds().size();
        Held held = held_now();
        /* The first episodes may leave what is made once per process. */
        if (++episodes <= 2)
            fds_before = std::max(fds_before, fds);
        if (fds > fds_before)
            printf("left: %zu fds more than before\n", fds - fds_before);
        else if (held.sets + held.ops_in_flight + held.polls_armed > 0)
            printf("left: %llu sets, %llu operations, %llu polls\n", (unsigned long long)held.sets,
                   (unsigned long long)held.ops_in_flight, (unsigned long long)held.polls_armed);
        else
            printf("left: nothing\n");
        printf("done %llu\n", (unsigned long long)held.cqes);
        fflush(stdout);
    }
    free(line);
    return 0;
}

/* ------------------------------------------------------------------ the driver */

/* One world, from outside. */
class Remote {
public:
    explicit Remote(std::string engine) : engine_(std::move(engine)) {}
    ~Remote() { stop(); }

    void send(const Script &script)
    {
        if (pid_ < 0)
            start();
        std::string text = "run " + std::to_string(script.size()) + "\n";
        for (auto &line : script)
            text += line + "\n";
        /* Small enough for the two pipes together, or the server reads it all
         * before it answers: no deadlock either way. */
        for (size_t at = 0; at < text.size();) {
            ssize_t count = ::write(to_, text.data() + at, text.size() - at);
            if (count <= 0)
                break;
            at += (size_t)count;
        }
    }

    Log receive()
    {
        Log log;
        int64_t deadline = now_ns() + 25000000000LL; /* more than the longest operation may take */
        for (;;) {
            size_t end = buffer_.find('\n');
            if (end != std::string::npos) {
                std::string line = buffer_.substr(0, end);
                buffer_.erase(0, end + 1);
                if (line.compare(0, 5, "done ") == 0) {
                    completions = strtoull(line.c_str() + 5, nullptr, 10);
                    return log;
                }
                log.push_back(line);
                continue;
            }
            struct pollfd one = {from_, POLLIN, 0};
            int left = (int)((deadline - now_ns()) / 1000000);
            if (left <= 0 || ::poll(&one, 1, left) == 0) {
                log.push_back("HANGS");
                stop();
                return log;
            }
            char bytes[65536];
            ssize_t count = ::read(from_, bytes, sizeof bytes);
            if (count <= 0) {
                int status = 0;
                ::close(to_);
                ::close(from_);
                waitpid(pid_, &status, 0);
                pid_ = -1;
                buffer_.clear();
                log.push_back(WIFSIGNALED(status) ? "DIES of signal " + std::to_string(WTERMSIG(status))
                                                  : "DIES with status " + std::to_string(WEXITSTATUS(status)));
                return log;
            }
            buffer_.append(bytes, (size_t)count);
        }
    }

    Log play(const Script &script)
    {
        send(script);
        return receive();
    }

    /* The world ends by itself, and says what it has to say in the end. */
    void finish()
    {
        if (pid_ < 0)
            return;
        ::close(to_);
        to_ = -1;
        char bytes[4096];
        while (::read(from_, bytes, sizeof bytes) > 0)
            ;
        ::close(from_);
        waitpid(pid_, nullptr, 0);
        pid_ = -1;
        buffer_.clear();
    }

    uint64_t completions = 0;
    std::string stats; /* a file for the shim's report; empty: none */

private:
    void start()
    {
        int in[2], out[2];
        if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
            abort();
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, in[0], 0);
        posix_spawn_file_actions_adddup2(&actions, out[1], 1);
        std::vector<std::string> strings;
        for (char **each = environ; *each != nullptr; each++)
            if (strncmp(*each, "LD_PRELOAD=", 11) != 0)
                strings.push_back(*each);
        const char *preload = getenv("RINGPOLL_TEST_PRELOAD");
        if (engine_ == "shim" && preload != nullptr) {
            strings.push_back(std::string("LD_PRELOAD=") + preload);
            const char *mode = getenv("RINGPOLL_TEST_MODE");
            strings.push_back(std::string("RINGPOLL=") + (mode != nullptr && *mode != 0 ? mode : "auto"));
            if (!stats.empty())
                strings.push_back("RINGPOLL_STATS=" + stats);
        }
        std::vector<char *> environment;
        for (auto &string : strings)
            environment.push_back(&string[0]);
        environment.push_back(nullptr);
        char self[] = "/proc/self/exe", serve_word[] = "--serve";
        char *arguments[] = {self, serve_word, &engine_[0], nullptr};
        char path[4096] = {};
        if (readlink(self, path, sizeof path - 1) <= 0 ||
            posix_spawn(&pid_, path, &actions, nullptr, arguments, environment.data()) != 0)
            abort();
        posix_spawn_file_actions_destroy(&actions);
        ::close(in[0]);
        ::close(out[1]);
        to_ = in[1];
        from_ = out[0];
    }

    void stop()
    {
        if (pid_ < 0)
            return;
        ::close(to_);
        ::close(from_);
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = -1;
        buffer_.clear();
    }

    std::string engine_;
    pid_t pid_ = -1;
    int to_ = -1, from_ = -1;
    std::string buffer_;
};

/* -------------------------------------------------------------- the comparison */

/* Which answers of a script are as good as the kernel's: told line by line, in order. */
class Judge {
public:
    virtual ~Judge() = default;
    virtual bool explained(const std::string & /* line */, const std::string &kernels, const std::string &ours)
    {
        return kernels == ours;
    }
};

class Comparison {
public:
    using MakeJudge = std::function<std::unique_ptr<Judge>()>;
    Comparison(const std::string &engine, MakeJudge make_judge = [] { return std::make_unique<Judge>(); })
        : kernel("kernel"), other(engine), make_judge_(std::move(make_judge))
    {
    }

    /* The first line where they differ, or -1. */
    long first_difference(const Script &script)
    {
        kernel.send(script);
        other.send(script);
        kernel_log = kernel.receive();
        other_log = other.receive();
        return differs_at = compare(script, kernel_log, other_log);
    }

    /* A difference that the kernel has with itself is none. */
    bool real_difference(const Script &script)
    {
        if (first_difference(script) < 0)
            return false;
        Log theirs = other_log;
        for (int i = 0; i < 10; i++)
            if (compare(script, kernel.play(script), theirs) < 0) {
                unsettled++;
                return false;
            }
        return true;
    }

    /* Leaves out what can be left out: halves, quarters, … single lines. */
    Script minimise(Script script)
    {
        int64_t deadline = now_ns() + 120000000000LL;
        for (size_t piece = script.size() / 2; piece > 0; piece = piece == 1 ? 0 : (piece + 1) / 2) {
            bool smaller = true;
            while (smaller && now_ns() < deadline) {
                smaller = false;
                for (size_t at = 0; at < script.size() && now_ns() < deadline;) {
                    Script without(script.begin(), script.begin() + (long)at);
                    size_t end = std::min(at + piece, script.size());
                    without.insert(without.end(), script.begin() + (long)end, script.end());
                    if (!without.empty() && without.size() < script.size() && first_difference(without) >= 0) {
                        script = without;
                        smaller = true;
                    } else {
                        at += piece;
                    }
                }
            }
        }
        return script;
    }

    void show(const Script &script)
    {
        long at = first_difference(script);
        printf("# script (save it and set RINGPOLL_DIFFERENTIAL_SCRIPT to play it again)\n");
        for (size_t i = 0; i < script.size(); i++) {
            bool here = i < kernel_log.size() && i < other_log.size() && kernel_log[i] == other_log[i];
            printf("%-36s # %s%s\n", script[i].c_str(), i < kernel_log.size() ? kernel_log[i].c_str() : "-",
                   here ? "" : (" | " + (i < other_log.size() ? other_log[i] : std::string("-"))).c_str());
        }
        if (at >= (long)script.size())
            printf("# afterwards: %s | %s\n", (size_t)at < kernel_log.size() ? kernel_log[(size_t)at].c_str() : "-",
                   (size_t)at < other_log.size() ? other_log[(size_t)at].c_str() : "-");
        if (at < 0)
            printf("# (played again just now it showed no difference)\n");
    }

    Remote kernel, other;
    Log kernel_log, other_log;
    long differs_at = -1; /* in them */
    uint64_t unsettled = 0, explained = 0;

private:
    long compare(const Script &script, const Log &kernels, const Log &ours)
    {
        auto judge = make_judge_();
        for (size_t i = 0; i < std::max(kernels.size(), ours.size()); i++) {
            if (i >= kernels.size() || i >= ours.size())
                return (long)i;
            bool same = kernels[i] == ours[i];
            if (!(i < script.size() ? judge->explained(script[i], kernels[i], ours[i]) : same))
                return (long)i;
            explained += !same;
        }
        return -1;
    }

    MakeJudge make_judge_;
};

inline uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != nullptr && *text != 0 ? strtoull(text, nullptr, 0) : otherwise;
}

/* What a run that fails ends with, behind all that GoogleTest has to say: a log that is cut
 * shows its last lines. */
class LastWords {
public:
    void begin(uint64_t seed, uint64_t operations)
    {
        const char *run = getenv("RINGPOLL_DIFFERENTIAL_RUN");
        again_ = "RINGPOLL_DIFFERENTIAL_SEED=" + std::to_string(seed) + " RINGPOLL_DIFFERENTIAL_OPS=";
        run_ = run != nullptr ? run : "the same run";
        operations_ = operations;
    }
    /* Of the `first` … operations that were played last, the first that differs. */
    void difference(uint64_t first, const Script &script, const Comparison &comparison)
    {
        size_t at = comparison.differs_at < 0 ? 0 : (size_t)comparison.differs_at;
        auto of = [at](const std::vector<std::string> &lines) {
            return at < lines.size() ? lines[at].substr(0, 100) : std::string("-");
        };
        words_ += "operation " + std::to_string(first + at) + ": " + of(script) + "\n  the kernel: " +
                  of(comparison.kernel_log) + "\n  ours:       " + of(comparison.other_log) + "\n";
        operations_ = std::min(operations_, first + script.size());
    }
    void say(bool failed) const
    {
        if (failed && !again_.empty())
            printf("\n%splay it again: %s%llu \\\n  %s\n", words_.c_str(), again_.c_str(),
                   (unsigned long long)operations_, run_.c_str());
    }

private:
    std::string again_, run_, words_;
    uint64_t operations_ = 0;
};

/* A script as show() prints it. */
inline Script script_from(const char *file)
{
    Script script;
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
        line = line.substr(0, line.find('#'));
        while (!line.empty() && line.back() == ' ')
            line.pop_back();
        if (!line.empty())
            script.push_back(line);
    }
    return script;
}

} // namespace support

#endif
