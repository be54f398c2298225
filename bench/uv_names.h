/* SPDX-License-Identifier: MIT
 *
 * What the programs on libuv's handles are when ringpoll/uv.h's take their place: the same
 * text, by other names.
 */
#ifndef BENCH_UV_NAMES_H
#define BENCH_UV_NAMES_H

#include <uv.h>

#include <ringpoll/uv.h>

#define uv_handle_t ringpoll_uv_handle_t
#define uv_stream_t ringpoll_uv_stream_t
#define uv_tcp_t ringpoll_uv_tcp_t
#define uv_pipe_t ringpoll_uv_pipe_t
#define uv_write_t ringpoll_uv_write_t
#define uv_udp_t ringpoll_uv_udp_t
#define uv_udp_send_t ringpoll_uv_udp_send_t
#define uv_tcp_init ringpoll_uv_tcp_init
#define uv_tcp_open ringpoll_uv_tcp_open
#define uv_pipe_init ringpoll_uv_pipe_init
#define uv_pipe_open ringpoll_uv_pipe_open
#define uv_listen ringpoll_uv_listen
#define uv_accept ringpoll_uv_accept
#define uv_read_start ringpoll_uv_read_start
#define uv_write ringpoll_uv_write
#define uv_stream_get_write_queue_size ringpoll_uv_stream_get_write_queue_size
#define uv_close ringpoll_uv_close
#define uv_udp_init ringpoll_uv_udp_init
#define uv_udp_open ringpoll_uv_udp_open
#define uv_udp_recv_start ringpoll_uv_udp_recv_start
#define uv_udp_send ringpoll_uv_udp_send

#endif
