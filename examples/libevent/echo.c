/* SPDX-License-Identifier: MIT
 *
 * An echo server with libevent, on io_uring: echo [ADDRESS:PORT]
 *
 * Three calls make it one: ringpoll_event_base_new(), ringpoll_listener_new_bind() and
 * ringpoll_bufferevent_socket_new() have taken the place of event_base_new(),
 * evconnlistener_new_bind() and bufferevent_socket_new(). All the rest is libevent's, and
 * where there is no io_uring the same program runs on epoll.
 */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <ringpoll/event.h>
#include <signal.h>
#include <stdio.h>

static void on_read(struct bufferevent *client, void *unused)
{
    (void)unused;
    bufferevent_write_buffer(client, bufferevent_get_input(client)); /* moved, not copied */
}

/* The client has ended; what it is still owed goes out first. */
static void on_sent(struct bufferevent *client, void *unused)
{
    (void)unused;
    bufferevent_free(client);
}

static void on_event(struct bufferevent *client, short what, void *unused)
{
    if ((what & BEV_EVENT_EOF) && evbuffer_get_length(bufferevent_get_output(client)) > 0)
        bufferevent_setcb(client, NULL, on_sent, on_event, unused);
    else
        bufferevent_free(client);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int length,
                      void *unused)
{
    struct event_base *base = evconnlistener_get_base(listener);
    struct bufferevent *client = ringpoll_bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    (void)address;
    (void)length;
    if (!client) {
        evutil_closesocket(fd);
        return;
    }
    bufferevent_setcb(client, on_read, NULL, on_event, unused);
    bufferevent_enable(client, EV_READ);
}

static void on_signal(evutil_socket_t number, short what, void *base)
{
    (void)number;
    (void)what;
    event_base_loopexit(base, NULL);
}

int main(int argc, char **argv)
{
    const char *where = argc > 1 ? argv[1] : "127.0.0.1:7777";
    struct sockaddr_storage address;
    int length = sizeof(address);
    if (evutil_parse_sockaddr_port(where, (struct sockaddr *)&address, &length) < 0) {
        fprintf(stderr, "echo: '%s' is no ADDRESS:PORT\n", where);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);

    struct event_base *base = ringpoll_event_base_new(NULL);
    struct evconnlistener *listener = ringpoll_listener_new_bind(
        base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, -1, (struct sockaddr *)&address, length);
    if (!listener) {
        perror("echo: listen");
        return 1;
    }
    struct event *interrupted = evsignal_new(base, SIGINT, on_signal, base);
    struct event *terminated = evsignal_new(base, SIGTERM, on_signal, base);
    event_add(interrupted, NULL);
    event_add(terminated, NULL);
    printf("echo on %s, by %s\n", where, event_base_get_method(base));
    fflush(stdout);
    event_base_dispatch(base);

    event_free(interrupted);
    event_free(terminated);
    evconnlistener_free(listener);
    event_base_free(base);
    return 0;
}
