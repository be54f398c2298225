/* SPDX-License-Identifier: MIT
 *
 * `ringpoll integrate`, on trees that have of libevent and libuv what it looks for: the
 * lines beside which it puts its own. Whether a real tree builds then is for
 * scripts/upstream.sh to see.
 */
#include "command.h"

#include <filesystem>
#include <map>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace {

using Tree = std::map<std::string, std::string>;

/* Each of the known lines, with others around it. */
const Tree known_lines = {
    {"configure.ac", "AC_INIT(libevent,2.1.12-stable)\nbefore\n"
                     "AM_CONDITIONAL(EPOLL_BACKEND, [test \"x$haveepoll\" = \"xyes\"])\nbehind\n"},
    {"Makefile.am",
     "SYS_SRC += epoll.c\nbetween\n"
     "AM_CPPFLAGS = -I$(srcdir)/compat -I./include -I$(srcdir)/include $(SYS_INCLUDES) $(LIBEVENT_CPPFLAGS)\n"},
    {"libevent.pc.in", "before\nLibs.private: @LIBS@\nbehind\n"},
    {"libevent_core.pc.in", "before\nLibs.private: @LIBS@\nbehind"},
    {"event.c", "/* Array of backends in order of preference. */\nstatic const struct eventop *eventops[] = {\nbehind\n"},
    {"bufferevent_sock.c", "#include \"iocp-internal.h\"\n#endif\nbetween\n"
                           "\t\treturn bufferevent_async_new_(base, fd, options);\n#endif\n"},
    {"listener.c", "#include \"evthread-internal.h\"\nbetween\n"
                   "\tif (backlog > 0) {\n\t\tif (listen(fd, backlog) < 0)\n\t\t\treturn NULL;\n"
                   "\tif (backlog > 0) {\n\t\tif (listen(fd, backlog) < 0)\n\t\t\tgoto err;\n"},
    {"test/test.sh", "#!/bin/sh\nBACKENDS=\"EVPORT EPOLL\"\n"},
    {"test/regress_et.c", "\t\t(!strcmp(event_base_get_method(base), \"epoll\") ||\nbehind\n"},
    {"test/include.am", "TESTS = \\\n\ttest_runner_epoll \\\n\tother\n"
                        "test_runner_epoll: $(top_srcdir)/test/test.sh\n\tother\n"},
};

class Integrate : public testing::Test {
protected:
    void make(const Tree &tree)
    {
        scratch_.make_directories("tree/m4");
        scratch_.make_directories("tree/test");
        for (const auto &[name, text] : tree)
            scratch_.write("tree/" + name, text, name == "test/test.sh" ? 0755 : 0640);
    }
    Tree now() const
    {
        Tree tree;
        for (const auto &entry : std::filesystem::recursive_directory_iterator(path())) {
            if (!entry.is_directory())
                tree[std::filesystem::relative(entry.path(), path()).string()] = read_file(entry.path().string());
        }
        return tree;
    }
    std::string path() const { return scratch_.file("tree"); }
    Outcome integrate(const Words &options = {}) const
    {
        Words words{"integrate"};
        words.insert(words.end(), options.begin(), options.end());
        words.insert(words.end(), {"libevent", path()});
        return ringpoll(words);
    }
    /* One sentence, which has all of `told`, and not a byte has changed. */
    void refuses(const Words &told)
    {
        Tree before = now();
        Outcome outcome = integrate();
        EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_EQ(outcome.out, "");
        for (const std::string &word : told)
            EXPECT_NE(outcome.err.find(word), std::string::npos) << word << " in\n" << outcome.story();
        EXPECT_EQ(now(), before);
    }
    Scratch scratch_;
};

} // namespace

TEST_F(Integrate, AddsItsLinesAndTakesNoneAway)
{
    make(known_lines);
    Outcome outcome = integrate();
    ASSERT_TRUE(outcome.exited_with(0)) << outcome.story();
    Tree after = now();
    EXPECT_EQ(after.size(), known_lines.size() + 1);
    EXPECT_NE(after["m4/ringpoll.m4"].find("AC_DEFUN([RINGPOLL_CHECK_URING]"), std::string::npos);
    EXPECT_EQ(after["test/test.sh"], "#!/bin/sh\nBACKENDS=\"URING EVPORT EPOLL\"\n");
    EXPECT_EQ(after["libevent_core.pc.in"], "before\nLibs.private: @LIBS@ @RINGPOLL_LIBS@\nbehind");
    EXPECT_EQ(after["event.c"], "#ifdef EVENT__HAVE_RINGPOLL\n#include <ringpoll/libevent.h>\n#endif\n"
                                "/* Array of backends in order of preference. */\n"
                                "static const struct eventop *eventops[] = {\n"
                                "#ifdef EVENT__HAVE_RINGPOLL\n\t&ringpoll_tree_ops,\n#endif\nbehind\n");
    for (const auto &[name, text] : known_lines) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            if (line.find("LIBS@") == std::string::npos && line.find("BACKENDS") == std::string::npos) {
                EXPECT_NE(after[name].find(line), std::string::npos) << name << ": " << line;
            }
        }
        EXPECT_NE(after[name], text);
    }
    struct stat script, source;
    ASSERT_EQ(stat((path() + "/test/test.sh").c_str(), &script), 0);
    ASSERT_EQ(stat((path() + "/event.c").c_str(), &source), 0);
    EXPECT_EQ(script.st_mode & 07777, 0755u);
    EXPECT_EQ(source.st_mode & 07777, 0640u);
}

TEST_F(Integrate, KnowsTheOtherVersionToo)
{
    Tree tree = known_lines;
    tree["configure.ac"].replace(tree["configure.ac"].find("2.1.12"), 6, "2.1.13");
    make(tree);
    EXPECT_TRUE(integrate().exited_with(0));
}

TEST_F(Integrate, TheSecondTimeChangesNothing)
{
    make(known_lines);
    ASSERT_TRUE(integrate().exited_with(0));
    Tree after = now();
    struct stat before, again;
    ASSERT_EQ(stat((path() + "/event.c").c_str(), &before), 0);
    Outcome outcome = integrate();
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_NE(outcome.out.find("nothing changed"), std::string::npos) << outcome.story();
    EXPECT_EQ(now(), after);
    ASSERT_EQ(stat((path() + "/event.c").c_str(), &again), 0);
    EXPECT_EQ(before.st_ino, again.st_ino);
}

TEST_F(Integrate, FinishesWhatWasInterrupted)
{
    make(known_lines);
    ASSERT_TRUE(integrate().exited_with(0));
    Tree after = now();
    for (const auto &[name, text] : known_lines) {
        scratch_.write("tree/" + name, text, 0640);
        Outcome outcome = integrate();
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(now(), after);
    }
    std::filesystem::remove(path() + "/m4/ringpoll.m4");
    EXPECT_TRUE(integrate().exited_with(0));
    EXPECT_EQ(now(), after);
}

TEST_F(Integrate, DryRunNamesTheFilesAndWritesNone)
{
    make(known_lines);
    Outcome outcome = integrate({"--dry-run"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(now(), known_lines);
    for (const auto &[name, text] : known_lines)
        EXPECT_NE(outcome.out.find(name + "\n"), std::string::npos) << name;
    EXPECT_NE(outcome.out.find("m4/ringpoll.m4\n"), std::string::npos);
}

TEST_F(Integrate, RefusesATreeThatLacksAnyOfTheKnownLines)
{
    for (const auto &[name, text] : known_lines) {
        Tree tree = known_lines;
        size_t line = text.find(name == "configure.ac" ? "AM_COND" : name == "listener.c" ? "\tif (" : "");
        tree[name].replace(line, 14, "something else");
        make(tree);
        refuses({name, "once"});
    }
}

TEST_F(Integrate, RefusesATreeThatHasAKnownLineTwice)
{
    Tree tree = known_lines;
    tree["event.c"] += known_lines.at("event.c");
    make(tree);
    refuses({"event.c", "2 times"});
}

TEST_F(Integrate, RefusesAnotherVersion)
{
    Tree tree = known_lines;
    tree["configure.ac"].replace(tree["configure.ac"].find("2.1.12-stable"), 13, "2.0.22-stable");
    make(tree);
    refuses({"2.0.22-stable", "2.1.12-stable", "2.1.13-stable"});
}

TEST_F(Integrate, RefusesWhatIsNoLibevent)
{
    make({{"configure.ac", "AC_INIT([tmux], 3.3)\n"}});
    refuses({"no source tree of libevent", "AC_INIT"});
    make({{"configure.ac", std::string("AC_INIT(libevent,2.1.12-stable)\n\0", 33)}});
    refuses({"configure.ac"});
    std::filesystem::remove(path() + "/configure.ac");
    refuses({"no source tree of libevent", "No such file"});
}

TEST_F(Integrate, RefusesWhatIsNoDirectory)
{
    for (const std::string &directory : {std::string(""), scratch_.file("nothing"), scratch_.write("file", "x", 0644)}) {
        Outcome outcome = ringpoll({"integrate", "libevent", directory});
        EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    }
}

TEST_F(Integrate, RefusesATreeWithAFileMissing)
{
    for (const auto &[name, text] : known_lines) {
        Tree tree = known_lines;
        make(tree);
        std::filesystem::remove(path() + "/" + name);
        refuses({name, "No such file"});
    }
}

TEST_F(Integrate, RefusesAnEditOfAnotherVersion)
{
    make(known_lines);
    ASSERT_TRUE(integrate().exited_with(0));
    std::string text = read_file(path() + "/event.c");
    text.replace(text.find("ringpoll_tree_ops"), 17, "ringpoll_old_ops_");
    scratch_.write("tree/event.c", text, 0644);
    refuses({"event.c", "another version of ringpoll"});
}

TEST_F(Integrate, RefusesTheMacrosOfAnotherVersion)
{
    Tree tree = known_lines;
    tree["m4/ringpoll.m4"] = "dnl an older one\n";
    make(tree);
    refuses({"m4/ringpoll.m4", "another version of ringpoll"});
}

TEST_F(Integrate, DoesNotFollowASymbolicLink)
{
    make(known_lines);
    std::filesystem::rename(path() + "/event.c", scratch_.file("elsewhere.c"));
    std::filesystem::create_symlink(scratch_.file("elsewhere.c"), path() + "/event.c");
    refuses({"event.c"});
    EXPECT_EQ(read_file(scratch_.file("elsewhere.c")), known_lines.at("event.c"));
}

TEST_F(Integrate, AFileThatCannotBeWrittenLeavesAllAsTheyWere)
{
    make(known_lines);
    /* The last of the files has no directory: also root meets that. */
    std::filesystem::remove(path() + "/m4/ringpoll.m4");
    std::filesystem::remove(path() + "/m4");
    refuses({"m4/ringpoll.m4", "as it was"});
}

TEST_F(Integrate, SaysWhereItsMacrosAreMissing)
{
    make(known_lines);
    Outcome outcome = ringpoll({"integrate", "libevent", path()}, {"RINGPOLL_MACROS=/no/such/file"});
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_NE(outcome.err.find("RINGPOLL_MACROS"), std::string::npos);
    EXPECT_EQ(now(), known_lines);
}

/* The rules above are of all projects. */
namespace {

const Tree libuv_lines = {
    {"configure.ac", "AC_INIT([libuv], [1.44.2], [issues])\nAC_CHECK_HEADERS([sys/ahafs_evProds.h])\nbehind\n"},
    {"Makefile.am", "libuv_la_CFLAGS = $(AM_CFLAGS)\nbehind\n"},
    {"include/uv.h", "  UV_LOOP_BLOCK_SIGNAL = 0,\n  UV_METRICS_IDLE_TIME\n} uv_loop_option;\n"},
    {"src/unix/loop.c", "    if (w->pevents != 0 && QUEUE_EMPTY(&w->watcher_queue)) {\n      w->events = 0;\nbefore\n  if (option != UV_LOOP_BLOCK_SIGNAL)\n    return UV_ENOSYS;\n"},
    {"src/unix/internal.h", "#include \"uv-common.h\"\nbehind\n"},
    {"src/unix/core.c", "int uv_backend_fd(const uv_loop_t* loop) {\n  return loop->backend_fd;\n}\n"
                        "  /* The if statement lets gcc compile it to a conditional store. Avoids\nbehind\n"},
    {"src/unix/stream.c", "  if (QUEUE_EMPTY(&stream->write_completed_queue))\n    return;\nbetween\n"
                          "    /* Write queue drained. */\n    if (QUEUE_EMPTY(&stream->write_queue))\n      uv__drain(stream);\n"
                          "between\n  if (!(stream->flags & UV_HANDLE_READING))\n    return 0;\n"
                          "between\n  return uv__try_write(stream, bufs, nbufs, send_handle);\n"},
    {"src/unix/udp.c",
     "union uv__sockaddr {\nbetween\nvoid uv__udp_close(uv_udp_t* handle) {\nbetween\n"
     "  if (revents & POLLIN)\n    uv__udp_recvmsg(handle);\nbetween\n"
     "  for (k = 0; k < chunks; ++k) {\n    iov[k].iov_base = 0;\nbetween\n"
     "    nread = uv__recvmmsg(handle->io_watcher.fd, msgs, chunks);\nbetween\n  count = 32;\nbetween\n"
     "      nread = recvmsg(handle->io_watcher.fd, &h, 0);\nbetween\n"
     "static void uv__udp_sendmmsg(uv_udp_t* handle) {\nbetween\n"
     "    npkts = uv__sendmmsg(handle->io_watcher.fd, h, pkts);\nbetween\n"
     "    for (i = 0, q = QUEUE_HEAD(&handle->write_queue);\n"
     "         i < pkts && q != &handle->write_queue;\nbetween\n"
     "  } else {\n    uv__io_start(handle->loop, &handle->io_watcher, POLLOUT);\nbetween\n"
     "  uv__io_init(&handle->io_watcher, uv__udp_io, fd);\nbetween\n"
     "  uv__io_start(handle->loop, &handle->io_watcher, POLLIN);\nbehind\n"},
    {"src/unix/fs.c", "#define POST  \\\nbetween\n      uv__work_submit(loop,    \\\nbetween\nint uv_fs_access(uv_loop_t* loop,\nbehind\n"},
    {"src/unix/epoll.c", "  while (!QUEUE_EMPTY(&loop->watcher_queue)) {\nbetween\n    if (w->events == 0)\n      op = EPOLL_CTL_ADD;\nbetween\n"
                         "      assert(fd >= 0);\n      assert((unsigned) fd < loop->nwatchers);\n\n      w = loop->watchers[fd];\n"},
    {"src/threadpool.c", "    loop =  ((uv_fs_t*) req)->loop;\nbehind\n"},
};

class IntegrateLibuv : public Integrate {
protected:
    void SetUp() override
    {
        scratch_.make_directories("tree/include");
        scratch_.make_directories("tree/src/unix");
        scratch_.make_directories("tree/m4");
        write(libuv_lines);
    }
    void write(const Tree &tree)
    {
        for (const auto &[name, text] : tree)
            scratch_.write("tree/" + name, text, 0644);
    }
    Outcome integrate() const { return ringpoll({"integrate", "libuv", path()}); }
};

} // namespace

TEST_F(IntegrateLibuv, AddsItsLinesOnce)
{
    Outcome outcome = integrate();
    ASSERT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_NE(outcome.out.find("autogen.sh"), std::string::npos) << outcome.story();
    Tree after = now();
    EXPECT_EQ(after.size(), libuv_lines.size() + 1);
    EXPECT_EQ(after["Makefile.am"], "libuv_la_CFLAGS = $(AM_CFLAGS)\nlibuv_la_CFLAGS += $(RINGPOLL_CFLAGS)\n"
                                    "libuv_la_LIBADD = $(RINGPOLL_LIBS)\nbehind\n");
    for (const auto &[name, text] : libuv_lines)
        EXPECT_NE(after[name], text);
    outcome = integrate();
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_NE(outcome.out.find("nothing changed"), std::string::npos) << outcome.story();
    EXPECT_EQ(now(), after);
}

TEST_F(IntegrateLibuv, RefusesATreeThatLacksAnyOfTheKnownLines)
{
    for (const auto &[name, text] : libuv_lines) {
        SCOPED_TRACE(name);
        write({{name, "nothing of it\n"}});
        Tree before = now();
        EXPECT_TRUE(integrate().exited_with(1));
        EXPECT_EQ(now(), before);
        write({{name, text}});
    }
}

TEST_F(IntegrateLibuv, RefusesAnotherVersionAndAnotherLibrary)
{
    write({{"configure.ac", "AC_INIT([libuv], [1.2.3], [issues])\n"}});
    Tree before = now();
    Outcome outcome = integrate();
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_NE(outcome.err.find("1.44.2"), std::string::npos) << outcome.story();
    EXPECT_TRUE(ringpoll({"integrate", "libevent", path()}).exited_with(1));
    EXPECT_EQ(now(), before);
}
