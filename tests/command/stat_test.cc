/* SPDX-License-Identifier: MIT
 *
 * What `ringpoll stat` promises: it says what the library does in a running
 * program, whatever that is doing meanwhile, and the program does not notice.
 */
#include "command.h"
#include "json.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

namespace {

#define NEED_SHIM()                                                                                           \
    if (shim().empty())                                                                                       \
    GTEST_SKIP() << "the shim has not been built"

#define NEED_RING()                                                                                           \
    NEED_SHIM();                                                                                              \
    if (!ringpoll({"probe"}).exited_with(0))                                                                  \
    GTEST_SKIP() << "this kernel gives no ring: see ringpoll probe"

bool contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

/* A connection to `helper serve`. */
class Client {
public:
    explicit Client(const std::string &path) : fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))
    {
        struct sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
        good = connect(fd, reinterpret_cast<struct sockaddr *>(&address), sizeof(address)) == 0;
    }
    ~Client() { close(fd); }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;
    bool echo(int times)
    {
        char bytes[64] = "to and fro", back[64];
        for (int i = 0; i < times && good; i++)
            good = send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) == sizeof(bytes) &&
                   recv(fd, back, sizeof(back), MSG_WAITALL) == sizeof(back) && memcmp(bytes, back, 64) == 0;
        return good;
    }

private:
    int fd;
    bool good;
};

/* Runs `helper serve` under the shim while `meanwhile` looks at it. */
struct Server {
    Scratch scratch;
    Words environment;
    std::string program = helper();

    std::string path() const { return scratch.file("socket"); }
    void run(const std::function<void(pid_t)> &meanwhile) const
    {
        Start how;
        how.words = {command(), "run", "--", program, "serve", path()};
        how.environment = environment;
        bool looked = false;
        how.when_ready = [&](pid_t pid) {
            looked = true;
            try {
                meanwhile(pid);
            } catch (const std::exception &error) {
                ADD_FAILURE() << error.what();
            }
            kill(pid, SIGTERM);
        };
        Outcome outcome = start(how);
        EXPECT_TRUE(looked && outcome.killed_by(SIGTERM)) << outcome.story();
    }
};

Outcome stat(pid_t pid, Words words = {})
{
    words.insert(words.begin(), "stat");
    words.push_back(std::to_string(pid));
    return ringpoll(words);
}

/* The one process that it is about. */
json::Value stat_json(pid_t pid, bool fds = true)
{
    Outcome outcome = stat(pid, fds ? Words{"--json", "--fds"} : Words{"--json"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
    json::Value whole = json::read(outcome.out);
    EXPECT_EQ(whole["ringpoll"].string, ringpoll_version());
    EXPECT_EQ(whole["processes"].array.size(), 1u);
    EXPECT_EQ(whole["processes"].array.at(0)["pid"].number, pid);
    return whole["processes"].array.at(0);
}

/* A line of /proc/PID/status. */
std::string status_of(pid_t pid, const std::string &key)
{
    std::string text = read_file("/proc/" + std::to_string(pid) + "/status");
    size_t at = text.find("\n" + key + ":");
    return at == std::string::npos ? "" : text.substr(at, text.find('\n', at + 1) - at);
}

class StatProfile : public testing::TestWithParam<const char *> {};

} // namespace

TEST_P(StatProfile, IsToldPerSetAndPerFd)
{
    NEED_RING();
    std::string profile = GetParam();
    Server server;
    server.environment = {"RINGPOLL_PROFILE=" + profile};
    server.run([&](pid_t pid) {
        Client one(server.path()), two(server.path());
        ASSERT_TRUE(one.echo(40) && two.echo(40));
        json::Value process = stat_json(pid);
        EXPECT_EQ(process["program"].string, "helper");
        EXPECT_EQ(process["library"].string, shim());
        EXPECT_TRUE(process["complete"].boolean);
        EXPECT_EQ(process["rings"].number, 1);
        ASSERT_EQ(process["sets"].array.size(), 1u);
        const json::Value &set = process["sets"].array[0];
        EXPECT_EQ(set["engine"].string, "ring");
        EXPECT_EQ(set["reason"].kind, json::Value::Null);
        EXPECT_EQ(set["profile"].string, profile);
        EXPECT_GE(set["counters"]["waits"].number, 80);
        EXPECT_GE(set["counters"]["events"].number, 80);
        EXPECT_GE(set["counters"]["ops_in_flight"].number, 2);
        for (const auto &counter : process["counters"].object)
            EXPECT_GE(counter.second.number, set["counters"][counter.first].number) << counter.first;
        bool adopts = profile != "readiness";
        EXPECT_EQ(set["fds_adopted"].number, adopts ? 2 : 0);
        EXPECT_EQ(set["counters"]["adoptions"].number > 0, adopts);
        EXPECT_EQ(set["counters"]["calls_saved"].number >= 70, adopts);
        unsigned clients = 0;
        for (const json::Value &fd : process["fds"].array) {
            EXPECT_EQ(fd["set"].number, set["fd"].number);
            EXPECT_EQ(fd["kind"].string, "unix");
            EXPECT_EQ(fd["unread"].number, 0);
            if (fd["on"].string == "epoll") {
                EXPECT_EQ(fd["why"].string, "not connected"); /* the listener */
                continue;
            }
            clients++;
            EXPECT_EQ(fd["on"].string, "ring");
            EXPECT_EQ(fd["adopted"].boolean, adopts);
            EXPECT_EQ(fd["why"].string, adopts ? "" : "profile readiness");
        }
        EXPECT_EQ(process["fds"].array.size(), 3u);
        EXPECT_EQ(clients, 2u);
        EXPECT_EQ(set["fds_on_ring"].number, clients);

        Outcome people = stat(pid, {"--fds"});
        EXPECT_TRUE(people.exited_with(0)) << people.story();
        EXPECT_TRUE(contains(people.out, "helper (" + std::to_string(pid) + "), ringpoll ")) << people.story();
        EXPECT_TRUE(contains(people.out, "system calls saved")) << people.story();
        EXPECT_TRUE(contains(people.out, adopts ? "  yes\n" : "no: profile readiness\n")) << people.story();
        EXPECT_TRUE(contains(people.out, "no: not connected\n")) << people.story();
    });
}
INSTANTIATE_TEST_SUITE_P(Command, StatProfile, testing::Values("readiness", "safe", "throughput"),
                         [](const auto &profile) { return std::string(profile.param); });

TEST(Stat, OfASetOnKernelEpollNamesTheReasonAndAsksTheKernelForItsFds)
{
    NEED_SHIM();
    Server server;
    server.environment = {"RINGPOLL_MASK=no-uring"};
    server.run([&](pid_t pid) {
        Client client(server.path());
        ASSERT_TRUE(client.echo(3));
        json::Value process = stat_json(pid, false), with_fds = stat_json(pid);
        const json::Value &set = process["sets"].array.at(0);
        EXPECT_EQ(process["rings"].number, 0);
        EXPECT_EQ(set["engine"].string, "kernel");
        EXPECT_EQ(set["reason"].string, ringpoll_reason_text(RINGPOLL_REASON_NO_RING));
        EXPECT_EQ(set["error"].string, "ENOSYS");
        EXPECT_EQ(set["fds_on_epoll"].kind, json::Value::Null);
        EXPECT_EQ(process.object.count("fds"), 0u);
        EXPECT_EQ(with_fds["sets"].array.at(0)["fds_on_epoll"].number, 2);
        ASSERT_EQ(with_fds["fds"].array.size(), 2u);
        for (const json::Value &fd : with_fds["fds"].array)
            EXPECT_EQ(fd["why"].string, "set on kernel epoll");
        EXPECT_TRUE(contains(stat(pid).out, ringpoll_reason_text(RINGPOLL_REASON_NO_RING)));
    });
}

TEST(Stat, IsNotNoticedByTheProgram)
{
    NEED_RING();
    Server server;
    server.run([&](pid_t pid) {
        Client client(server.path());
        ASSERT_TRUE(client.echo(20));
        while (!contains(status_of(pid, "State"), "S (sleeping)")) /* back in its wait */
            std::this_thread::yield();
        std::string asleep = status_of(pid, "voluntary_ctxt_switches");
        ASSERT_NE(asleep, "");
        json::Value first = stat_json(pid);
        for (int i = 0; i < 20; i++)
            stat_json(pid);
        json::Value last = stat_json(pid);
        EXPECT_EQ(status_of(pid, "voluntary_ctxt_switches"), asleep) << "it was woken";
        for (const auto &counter : first["counters"].object)
            EXPECT_EQ(counter.second.number, last["counters"][counter.first].number) << counter.first;
        EXPECT_TRUE(client.echo(20));
    });
}

TEST(Stat, WhileConnectionsComeAndGoIsAlwaysWellFormed)
{
    NEED_RING();
    Server server;
    server.run([&](pid_t pid) {
        std::atomic<bool> over{false};
        std::thread churn([&] {
            while (!over) {
                Client one(server.path()), two(server.path()), three(server.path());
                EXPECT_TRUE(one.echo(1) && two.echo(3) && one.echo(2));
            }
        });
        double before = 0;
        for (int i = 0; i < 30; i++) {
            json::Value process = stat_json(pid);
            EXPECT_TRUE(process["complete"].boolean);
            EXPECT_EQ(process["sets"].array.size(), 1u);
            EXPECT_LE(process["fds"].array.size(), 8u);
            EXPECT_GE(process["counters"]["waits"].number, before);
            before = process["counters"]["waits"].number;
        }
        over = true;
        churn.join();
    });
}

TEST(Stat, FindsAllProcessesOfAName)
{
    NEED_SHIM();
    Server one, two;
    std::string name = "rpstat" + std::to_string(getpid() % 100000);
    one.program = one.scratch.copy(helper(), name, 0755);
    two.program = two.scratch.copy(helper(), name, 0755);
    one.run([&](pid_t first) {
        two.run([&](pid_t second) {
            for (const Words &words : {Words{"stat", "--json", name}, Words{"stat", name, "--json"}}) {
                Outcome outcome = ringpoll(words);
                ASSERT_TRUE(outcome.exited_with(0)) << outcome.story();
                json::Value found = json::read(outcome.out);
                ASSERT_EQ(found["processes"].array.size(), 2u);
                double pids = found["processes"].array[0]["pid"].number + found["processes"].array[1]["pid"].number;
                EXPECT_EQ(pids, first + second);
            }
        });
    });
    Outcome outcome = ringpoll({"stat", name});
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "'" + name + "'")) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
}

TEST(Stat, WatchesWithRatesUntilTheProgramEnds)
{
    NEED_RING();
    for (bool json : {false, true}) {
        Server server;
        Scratch scratch;
        Outcome watch;
        std::thread watcher;
        server.run([&](pid_t pid) {
            watcher = std::thread([&, pid] {
                Start how;
                how.words = {command(), "stat", "--watch=0.02", std::to_string(pid)};
                if (json)
                    how.words.push_back("--json");
                std::string file = scratch.file("out");
                how.in_child = [file] { dup2(open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), STDOUT_FILENO); };
                watch = start(how);
            });
            Client client(server.path());
            std::string next = json ? "\n{" : "\nhelper (";
            for (size_t seen = 0, at = 0; seen < 3;) {
                ASSERT_TRUE(client.echo(1));
                std::string text = read_file(scratch.file("out"));
                for (seen = 0, at = 0; (at = text.find(next, at)) != std::string::npos; at++)
                    seen++;
            }
        });
        watcher.join();
        std::string text = read_file(scratch.file("out"));
        EXPECT_TRUE(watch.exited_with(0)) << watch.story() << text;
        EXPECT_EQ(watch.err, "");
        EXPECT_FALSE(contains(text, "\033"));
        if (json) {
            json::Value first = json::read(text.substr(0, text.find('\n')));
            EXPECT_EQ(first["processes"].array.size(), 1u);
        } else {
            EXPECT_TRUE(contains(text, "all /s")) << text;
            EXPECT_TRUE(contains(text, " /s\n")) << text;
        }
    }
}

TEST(Stat, OfAProcessWithoutRingpollSaysSo)
{
    Start how;
    how.words = {helper(), "wait"};
    how.when_ready = [](pid_t pid) {
        Outcome outcome = stat(pid);
        EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u);
        EXPECT_TRUE(contains(outcome.err, "no ringpoll in process '" + std::to_string(pid) + "'")) << outcome.story();
        EXPECT_EQ(outcome.out, "");
        kill(pid, SIGKILL);
    };
    start(how);
}

TEST(Stat, OfAProcessThatIsNotThereSaysSo)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    waitpid(pid, nullptr, 0);
    Outcome outcome = stat(pid);
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
    EXPECT_TRUE(contains(outcome.err, "there is no process '" + std::to_string(pid) + "'")) << outcome.story();
}

TEST(Stat, OfAnotherUsersProcessSaysWhoMay)
{
    NEED_SHIM();
    if (geteuid() != 0)
        GTEST_SKIP() << "needs root, to have another user";
    Server server;
    std::string copy = server.scratch.copy(command(), "ringpoll", 0755);
    server.run([&](pid_t pid) {
        Start how;
        how.words = {copy, "stat", std::to_string(pid)};
        how.in_child = [] {
            if (setgroups(0, nullptr) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
                _exit(203);
        };
        Outcome outcome = start(how);
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u);
        EXPECT_TRUE(contains(outcome.err, "another user's; root may")) << outcome.story();
        EXPECT_EQ(outcome.out, "");
    });
}

TEST(Stat, OfAnotherVersionIsRefused)
{
    NEED_SHIM();
    Server server;
    std::string library = read_file(shim()), magic("\x7fRPSTAT\0", 8), version = ringpoll_version();
    size_t at = library.find(magic + version);
    ASSERT_NE(at, std::string::npos);
    library.replace(at + magic.size(), version.size(), std::string(version.size(), '9'));
    server.environment = {"RINGPOLL_PRELOAD=" + server.scratch.write("shim.so", library, 0755)};
    server.run([&](pid_t pid) {
        Outcome outcome = stat(pid);
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u);
        EXPECT_TRUE(contains(outcome.err, "(" + std::string(version.size(), '9') + ")")) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, server.scratch.file("shim.so"))) << outcome.story();
    });
}

TEST(Stat, NeedsNoFileOfTheLibrary)
{
    NEED_SHIM();
    Server server;
    std::string library = server.scratch.copy(shim(), "shim.so", 0755);
    server.environment = {"RINGPOLL_PRELOAD=" + library};
    server.run([&](pid_t pid) {
        ASSERT_EQ(unlink(library.c_str()), 0);
        EXPECT_EQ(stat_json(pid)["library"].string, library + " (deleted)");
    });
}

TEST(Stat, ThatCannotBeWrittenIsAFailure)
{
    NEED_SHIM();
    Server server;
    server.run([&](pid_t pid) {
        Start how;
        how.words = {command(), "stat", std::to_string(pid)};
        how.in_child = [] { dup2(open("/dev/full", O_WRONLY | O_CLOEXEC), STDOUT_FILENO); };
        Outcome outcome = start(how);
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u);
    });
}
