/* SPDX-License-Identifier: MIT
 *
 * Many: more watches, events and changes than any queue of the library holds.
 */
#include "conformance.h"

using namespace support;

CONFORMANCE(Scale);

TEST_P(Scale, FiveThousandAddsWithoutAWaitBetween)
{
    int set = new_set();
    std::vector<int> fds;
    for (int i = 0; i < 5000; i++) {
        fds.push_back(eventfd(i % 10 == 0));
        ASSERT_EQ(add(set, fds.back(), in_), 0);
    }
    Events events = ready(set, 10000);
    EXPECT_EQ(events.size(), 500u);
    for (int fd : fds)
        take(fd);
    EXPECT_EQ(ready(set, 10000), Events());
    for (int fd : fds)
        kick(fd);
    EXPECT_EQ(ready(set, 10000).size(), 5000u);
    for (size_t i = 0; i < fds.size(); i += 2)
        ASSERT_EQ(del(set, fds[i]), 0);
    EXPECT_EQ(ready(set, 10000).size(), 2500u);
}

TEST_P(Scale, ThreeThousandConnectionsSpeakAtOnce)
{
    int set = new_set();
    std::vector<Pair> pairs;
    for (int i = 0; i < 3000; i++) {
        pairs.push_back(i % 3 ? unix_stream() : tcp());
        ASSERT_EQ(add(set, pairs.back().a, in_ | et_), 0);
    }
    EXPECT_EQ(ready(set, 4000), Events());
    for (auto &p : pairs)
        put(p.b, 1, p.a);
    std::set<uint64_t> seen;
    for (;;) {
        Events some = ready(set, 100);
        if (some.empty())
            break;
        for (auto &event : some) {
            EXPECT_EQ(event.events, in_);
            EXPECT_TRUE(seen.insert(event.data).second) << "an edge comes once";
        }
    }
    EXPECT_EQ(seen.size(), pairs.size());
    for (auto &p : pairs)
        ASSERT_EQ(e().close(p.a), 0);
    for (auto &p : pairs)
        EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    EXPECT_EQ(ready(set, 4000), Events());
}

TEST_P(Scale, MoreWakeUpsThanAnyQueueHolds)
{
    /* A busy edge-triggered fd makes one wake-up per write; none of the others
     * may get lost under them. */
    int set = new_set();
    int busy = eventfd(), quiet = eventfd();
    ASSERT_EQ(add(set, busy, in_ | et_), 0);
    ASSERT_EQ(add(set, quiet, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 20000; i++)
        kick(busy);
    kick(quiet);
    Events expected = {{(uint64_t)busy, in_}, {(uint64_t)quiet, in_}};
    EXPECT_EQ(ready(set), expected);
    EXPECT_EQ(ready(set), Events());
    EXPECT_EQ(take(busy), 20000u);
    kick(busy);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)busy, in_}}));
}

TEST_P(Scale, ManyFdsWithManyWakeUpsEach)
{
    int set = new_set();
    std::vector<int> fds;
    for (int i = 0; i < 1000; i++) {
        fds.push_back(eventfd());
        ASSERT_EQ(add(set, fds.back(), in_ | et_), 0);
    }
    EXPECT_EQ(ready(set, 2000), Events());
    for (int i = 0; i < 20; i++)
        for (int fd : fds)
            kick(fd);
    EXPECT_EQ(ready(set, 2000).size(), 1000u);
    EXPECT_EQ(ready(set, 2000), Events());
}

TEST_P(Scale, TenThousandModsWithoutAWaitBetween)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 10000; i++)
        ASSERT_EQ(mod(set, p.a, i % 2 ? in_ : in_ | out_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Scale, TenThousandAddsAndDelsWithoutAWaitBetween)
{
    int set = new_set();
    Pair p = unix_stream();
    put(p.b, 1, p.a);
    for (int i = 0; i < 10000; i++) {
        ASSERT_EQ(add_as(set, p.a, in_, (uint64_t)i), 0);
        ASSERT_EQ(del(set, p.a), 0);
    }
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(add_as(set, p.a, in_, 7), 0);
    EXPECT_EQ(ready(set), (Events{{7, in_}}));
}

TEST_P(Scale, ChurnOfConnections)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address, 128);
    ASSERT_EQ(add(set, listening, in_), 0);
    char byte;
    for (int i = 0; i < 500; i++) {
        int client = connected_to(address);
        ASSERT_EQ(next(set), (Events{{(uint64_t)listening, in_}}));
        int served = e().accept(listening);
        ASSERT_EQ(add(set, served, in_), 0);
        put(client, 1, -1);
        ASSERT_EQ(next(set), (Events{{(uint64_t)served, in_}}));
        ASSERT_EQ(e().read(served, &byte, 1), 1);
        ASSERT_EQ(e().write(served, "r", 1), 1);
        if (i % 2) {
            ASSERT_EQ(del(set, served), 0);
        }
        ASSERT_EQ(e().close(served), 0);
        ASSERT_TRUE(settle(client, POLLRDHUP, 5));
        ASSERT_EQ(e().read(client, &byte, 1), 1);
        ASSERT_EQ(e().read(client, &byte, 1), 0);
        reset(client);
    }
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Scale, AMegabyteThroughEveryKindByEdges)
{
    int set = new_set();
    Pair kinds[3] = {tcp(), unix_stream(), pipe()};
    std::vector<char> bytes(50000, 'z');
    for (auto &p : kinds) {
        ASSERT_EQ(add_as(set, p.a, in_ | et_, 1), 0);
        ASSERT_EQ(add_as(set, p.b, out_ | et_, 2), 0);
        size_t sent = 0, got = 0, total = 1u << 20;
        while (got < total) {
            Events events = next(set);
            ASSERT_FALSE(events.empty()) << "sent " << sent << " got " << got;
            for (auto &event : events) {
                ssize_t count;
                if (event.data == 2) {
                    while (sent < total &&
                           (count = e().write(p.b, bytes.data(), std::min(bytes.size(), total - sent))) > 0)
                        sent += (size_t)count;
                } else {
                    while ((count = e().read(p.a, bytes.data(), bytes.size())) > 0)
                        got += (size_t)count;
                }
            }
        }
        ASSERT_EQ(del(set, p.a), 0);
        ASSERT_EQ(del(set, p.b), 0);
        EXPECT_EQ(ready(set), Events());
    }
}
