/* SPDX-License-Identifier: MIT
 *
 * The start-up object: which bases of a program that knows nothing of it are on the
 * ring. The program is this one, executed again under LD_PRELOAD.
 */
#include <event2/event.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

namespace {

const int NO_URING = 0x40000000; /* RINGPOLL_EVENT_NO_URING, which a stranger does not know */

int say_method(const std::string &wish)
{
    struct event_config *config = wish == "nothing" ? nullptr : event_config_new();
    if (wish == "changelist")
        event_config_set_flag(config, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
    if (wish == "no ring")
        event_config_set_flag(config, NO_URING);
    if (wish == "fds")
        event_config_require_features(config, EV_FEATURE_FDS);
    if (wish == "avoid io_uring")
        event_config_avoid_method(config, "io_uring");
    if (wish == "avoid epoll")
        event_config_avoid_method(config, "epoll");
    struct event_base *base = wish == "init" ? event_base_new() : event_base_new_with_config(config);
    puts(base ? event_base_get_method(base) : "none");
    if (base)
        event_base_free(base);
    if (config)
        event_config_free(config);
    return 0;
}

std::string method(const std::string &wish, const std::string &environment = "")
{
    const char *top = getenv("top_builddir");
    std::string object = std::string(top ? top : ".") + "/adapters/libevent/.libs/libringpoll-event-startup.so";
    std::string command = "LD_PRELOAD='" + object + "' " + environment + " SELF '--wish=" + wish + "'";
    char line[64] = "";
    char self[4096] = "";
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0)
        command.replace(command.find("SELF"), strlen("SELF"), "'" + std::string(self) + "'");
    FILE *output = popen(command.c_str(), "r");
    if (!output || !fgets(line, sizeof line, output))
        line[0] = '\0';
    EXPECT_EQ(pclose(output), 0) << command;
    line[strcspn(line, "\n")] = '\0';
    return line;
}

class Startup : public ::testing::Test {
protected:
    void SetUp() override
    {
        const char *sanitizer = getenv("RINGPOLL_SANITIZE");
        if (sanitizer && *sanitizer)
            GTEST_SKIP() << "a sanitizer's runtime is to be loaded first";
    }
};

TEST_F(Startup, EveryBaseIsOnTheRing)
{
    EXPECT_EQ(method("nothing"), "io_uring");
    EXPECT_EQ(method("init"), "io_uring");
    EXPECT_EQ(method("an empty config"), "io_uring");
}

TEST_F(Startup, EpollWithItsChangelistIsEpollToo)
{
    EXPECT_EQ(method("changelist"), "io_uring");
    EXPECT_EQ(method("nothing", "EVENT_EPOLL_USE_CHANGELIST=1"), "io_uring");
}

TEST_F(Startup, PollInPlaceOfAnEpollThatTheEnvironmentSwitchedOffIsReplaced)
{
    EXPECT_EQ(method("nothing", "EVENT_NOEPOLL=1"), "io_uring");
}

TEST_F(Startup, WhatTheProgramChoseStays)
{
    EXPECT_EQ(method("avoid epoll"), "poll");
    EXPECT_EQ(method("fds"), "poll");
}

TEST_F(Startup, WhatRefusesTheRingIsHeard)
{
    EXPECT_EQ(method("avoid io_uring"), "epoll");
    EXPECT_EQ(method("no ring"), "epoll");
    EXPECT_EQ(method("nothing", "EVENT_NOURING=1"), "epoll");
    EXPECT_EQ(method("nothing", "EVENT_NOIO_URING=1"), "epoll");
    EXPECT_EQ(method("avoid io_uring", "EVENT_NOEPOLL=1"), "poll");
}

} // namespace

int main(int argc, char **argv)
{
    if (argc == 2 && strncmp(argv[1], "--wish=", 7) == 0)
        return say_method(argv[1] + 7);
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
