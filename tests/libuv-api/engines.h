/* SPDX-License-Identifier: MIT
 *
 * One test body, two engines: libuv's own handles, and libringpoll-uv's.
 */
#ifndef LIBUV_API_ENGINES_H
#define LIBUV_API_ENGINES_H

#include <functional>

#include <gtest/gtest.h>
#include <ringpoll/uv.h>

/* A loop that hangs ends, and its test fails. */
class WatchedLoop {
public:
    void make_loop()
    {
        ASSERT_EQ(uv_loop_init(&loop_), 0);
        uv_timer_init(&loop_, &watchdog_);
        uv_timer_start(&watchdog_, [](uv_timer_t *timer) {
            ADD_FAILURE() << "it hangs";
            uv_stop(timer->loop);
        }, 20000, 0);
        keep_loop(false);
    }
    void end_loop()
    {
        uv_close((uv_handle_t *)&watchdog_, nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(uv_loop_close(&loop_), 0);
    }
    void run() { uv_run(&loop_, UV_RUN_DEFAULT); }
    /* Turns of the loop until it is so. */
    void run_until(std::function<bool()> is_so)
    {
        bool kept = uv_has_ref((uv_handle_t *)&watchdog_);
        keep_loop(true); /* a loop that is not alive runs no timers */
        while (!is_so() && !::testing::Test::HasFailure())
            uv_run(&loop_, UV_RUN_ONCE);
        keep_loop(kept);
    }
    void keep_loop(bool on)
    {
        if (on)
            uv_ref((uv_handle_t *)&watchdog_);
        else
            uv_unref((uv_handle_t *)&watchdog_);
    }
    uv_loop_t loop_;

private:
    uv_timer_t watchdog_;
};

#define ENGINE(name, prefix)                                                                                       \
    struct name {                                                                                                  \
        using Handle = prefix##handle_t;                                                                           \
        using Stream = prefix##stream_t;                                                                           \
        using Tcp = prefix##tcp_t;                                                                                 \
        using Pipe = prefix##pipe_t;                                                                               \
        using Udp = prefix##udp_t;                                                                                 \
        using Connect = prefix##connect_t;                                                                         \
        using Write = prefix##write_t;                                                                             \
        using Shutdown = prefix##shutdown_t;                                                                       \
        using UdpSend = prefix##udp_send_t;                                                                        \
        static constexpr auto close = prefix##close;                                                               \
        static constexpr auto is_active = prefix##is_active;                                                       \
        static constexpr auto is_closing = prefix##is_closing;                                                     \
        static constexpr auto ref = prefix##ref;                                                                   \
        static constexpr auto unref = prefix##unref;                                                               \
        static constexpr auto has_ref = prefix##has_ref;                                                           \
        static constexpr auto fileno = prefix##fileno;                                                             \
        static constexpr auto listen = prefix##listen;                                                             \
        static constexpr auto accept = prefix##accept;                                                             \
        static constexpr auto read_start = prefix##read_start;                                                     \
        static constexpr auto read_stop = prefix##read_stop;                                                       \
        static constexpr auto write = prefix##write;                                                               \
        static constexpr auto try_write = prefix##try_write;                                                       \
        static constexpr auto shutdown = prefix##shutdown;                                                         \
        static constexpr auto is_readable = prefix##is_readable;                                                   \
        static constexpr auto is_writable = prefix##is_writable;                                                   \
        static constexpr auto write_queue_size = prefix##stream_get_write_queue_size;                              \
        static constexpr auto tcp_init = prefix##tcp_init;                                                         \
        static constexpr auto tcp_open = prefix##tcp_open;                                                         \
        static constexpr auto tcp_bind = prefix##tcp_bind;                                                         \
        static constexpr auto tcp_connect = prefix##tcp_connect;                                                   \
        static constexpr auto tcp_nodelay = prefix##tcp_nodelay;                                                   \
        static constexpr auto tcp_keepalive = prefix##tcp_keepalive;                                               \
        static constexpr auto tcp_getsockname = prefix##tcp_getsockname;                                           \
        static constexpr auto tcp_getpeername = prefix##tcp_getpeername;                                           \
        static constexpr auto tcp_close_reset = prefix##tcp_close_reset;                                           \
        static constexpr auto pipe_init = prefix##pipe_init;                                                       \
        static constexpr auto pipe_open = prefix##pipe_open;                                                       \
        static constexpr auto pipe_bind = prefix##pipe_bind;                                                       \
        static constexpr auto pipe_connect = prefix##pipe_connect;                                                 \
        static constexpr auto pipe_getsockname = prefix##pipe_getsockname;                                         \
        static constexpr auto pipe_getpeername = prefix##pipe_getpeername;                                         \
        static constexpr auto udp_init = prefix##udp_init;                                                         \
        static constexpr auto udp_bind = prefix##udp_bind;                                                         \
        static constexpr auto udp_connect = prefix##udp_connect;                                                   \
        static constexpr auto udp_send = prefix##udp_send;                                                         \
        static constexpr auto udp_try_send = prefix##udp_try_send;                                                 \
        static constexpr auto udp_recv_start = prefix##udp_recv_start;                                             \
        static constexpr auto udp_recv_stop = prefix##udp_recv_stop;                                               \
        static constexpr auto udp_getsockname = prefix##udp_getsockname;                                           \
        static constexpr auto udp_getpeername = prefix##udp_getpeername;                                           \
        static constexpr auto udp_get_send_queue_size = prefix##udp_get_send_queue_size;                           \
        static constexpr auto udp_get_send_queue_count = prefix##udp_get_send_queue_count;                         \
        using Fs = prefix##fs_t;                                                                                   \
        static constexpr auto fs_read = prefix##fs_read;                                                           \
        static constexpr auto fs_write = prefix##fs_write;                                                         \
        static constexpr bool is_ours = sizeof #prefix > sizeof "uv_";                                             \
    };
ENGINE(Stock, uv_)
ENGINE(Ours, ringpoll_uv_)
#undef ENGINE

#endif
