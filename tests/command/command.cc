/* SPDX-License-Identifier: MIT
 *
 * Starting the command. Both output pipes are read while it runs, and a process
 * that has not ended after a minute is killed, so a test fails and never hangs.
 */
#include "command.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <poll.h>
#include <sstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

extern char **environ;

namespace {

std::string top_builddir()
{
    const char *directory = getenv("top_builddir");
    return directory != nullptr ? directory : ".";
}

std::string absolute(const std::string &path)
{
    return std::filesystem::absolute(path).lexically_normal().string();
}

bool names(const std::string &entry, const std::string &name)
{
    return entry.compare(0, name.size() + 1, name + "=") == 0;
}

Words environment_of(const Words &changes)
{
    Words result;
    for (char **entry = environ; *entry != nullptr; entry++) {
        std::string text = *entry;
        if (text.compare(0, 8, "RINGPOLL") != 0 && !names(text, "LD_PRELOAD"))
            result.push_back(text);
    }
    if (!shim().empty())
        result.push_back("RINGPOLL_PRELOAD=" + shim());
    /* In a build for the address sanitizer its library comes by the program and
     * by the shim alike. */
    if (getenv("ASAN_OPTIONS") == nullptr)
        result.push_back("ASAN_OPTIONS=verify_asan_link_order=0");
    for (const std::string &change : changes) {
        std::string name = change.substr(0, change.find('='));
        for (size_t i = 0; i < result.size();) {
            if (names(result[i], name))
                result.erase(result.begin() + static_cast<long>(i));
            else
                i++;
        }
        if (change.find('=') != std::string::npos)
            result.push_back(change);
    }
    return result;
}

std::vector<char *> pointers(const Words &words)
{
    std::vector<char *> result;
    for (const std::string &word : words)
        result.push_back(const_cast<char *>(word.c_str()));
    result.push_back(nullptr);
    return result;
}

} // namespace

bool Outcome::exited_with(int code) const
{
    return WIFEXITED(status) && WEXITSTATUS(status) == code;
}

bool Outcome::killed_by(int signal) const
{
    return WIFSIGNALED(status) && WTERMSIG(status) == signal;
}

size_t Outcome::complaints() const
{
    size_t lines = 0;
    for (char c : err)
        lines += c == '\n';
    return lines;
}

std::string Outcome::story() const
{
    std::ostringstream text;
    if (WIFEXITED(status))
        text << "exit status " << WEXITSTATUS(status);
    else
        text << "signal " << WTERMSIG(status);
    text << "\n--- stdout\n" << out << "--- stderr\n" << err << "---";
    return text.str();
}

Outcome start(const Start &how)
{
    Outcome outcome;
    Words environment = environment_of(how.environment);
    std::vector<char *> argv = pointers(how.words), envp = pointers(environment);
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
        ADD_FAILURE() << "pipe2: " << strerror(errno);
        return outcome;
    }
    outcome.pid = fork();
    if (outcome.pid == 0) {
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        dup2(null, STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        if (!how.directory.empty() && chdir(how.directory.c_str()) != 0)
            _exit(201);
        if (how.in_child)
            how.in_child();
        execve(argv[0], argv.data(), envp.data());
        dprintf(STDERR_FILENO, "execve %s: %s\n", argv[0], strerror(errno));
        _exit(202);
    }
    close(out[1]);
    close(err[1]);
    struct pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    std::string *texts[2] = {&outcome.out, &outcome.err};
    bool told = false, killed = false;
    for (int open_fds = 2; open_fds > 0;) {
        int ready = poll(fds, 2, 60000);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0) {
            if (killed)
                break;
            ADD_FAILURE() << how.words[0] << " did not end";
            kill(outcome.pid, SIGKILL);
            killed = true;
            continue;
        }
        for (int i = 0; i < 2; i++) {
            if (fds[i].revents == 0)
                continue;
            char buffer[4096];
            ssize_t length = read(fds[i].fd, buffer, sizeof(buffer));
            if (length > 0) {
                texts[i]->append(buffer, static_cast<size_t>(length));
            } else if (length == 0 || errno != EINTR) {
                fds[i].fd = -1;
                open_fds--;
            }
        }
        if (how.when_ready && !told && outcome.out.find('\n') != std::string::npos) {
            told = true;
            how.when_ready(outcome.pid);
        }
    }
    close(out[0]);
    close(err[0]);
    while (waitpid(outcome.pid, &outcome.status, 0) < 0 && errno == EINTR)
        continue;
    return outcome;
}

std::string command()
{
    const char *named = getenv("RINGPOLL_TEST_COMMAND");
    return absolute(named != nullptr ? named : top_builddir() + "/tools/ringpoll");
}

std::string helper()
{
    const char *named = getenv("RINGPOLL_TEST_HELPER");
    return absolute(named != nullptr ? named : top_builddir() + "/tests/command/helper");
}

std::string shim()
{
    const char *named = getenv("RINGPOLL_PRELOAD");
    std::string path = named != nullptr ? named
                                        : top_builddir() + "/adapters/preload/.libs/libringpoll-preload.so";
    return access(path.c_str(), R_OK) == 0 ? std::filesystem::canonical(path).string() : "";
}

Outcome ringpoll(const Words &words, const Words &environment)
{
    Start how;
    how.words = words;
    how.words.insert(how.words.begin(), command());
    how.environment = environment;
    return start(how);
}

Scratch::Scratch()
{
    const char *parent = getenv("TMPDIR");
    std::string pattern = std::string(parent != nullptr ? parent : "/tmp") + "/ringpoll-command-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr)
        ADD_FAILURE() << "mkdtemp: " << strerror(errno);
    directory = std::filesystem::canonical(pattern).string();
    chmod(directory.c_str(), 0755);
}

Scratch::~Scratch()
{
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
}

std::string Scratch::write(const std::string &name, const std::string &content, unsigned mode) const
{
    std::string path = file(name);
    /* Closed before anybody is forked who could inherit it and make exec say
     * ETXTBSY. */
    std::ofstream(path, std::ios::binary) << content;
    chmod(path.c_str(), mode);
    return path;
}

std::string Scratch::copy(const std::string &from, const std::string &name, unsigned mode) const
{
    return write(name, read_file(from), mode);
}

void Scratch::make_directories(const std::string &name) const
{
    std::filesystem::create_directories(file(name));
}

std::string read_file(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    content << file.rdbuf();
    return content.str();
}
