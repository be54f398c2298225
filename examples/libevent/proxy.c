/* SPDX-License-Identifier: MIT
 *
 * A TCP proxy with bufferevents, on io_uring: proxy LISTEN-ADDRESS:PORT TARGET-ADDRESS:PORT
 *
 * Each client is a pair of bufferevents. What comes from one goes to the other without
 * a copy; a side that takes nothing stops the other from being read (MOST bytes on their
 * way, then ENOUGH_LEFT); the end of one direction is passed on when its bytes are.
 */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <ringpoll/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#define MOST (256 * 1024)
#define ENOUGH_LEFT (64 * 1024)

struct side {
    struct bufferevent *stream;
    struct side *other;
    int ended;   /* it sends no more */
    int told;    /* it was told that the other sends no more */
};

static struct sockaddr_storage target;
static int target_length = sizeof(target);

static void end_pair(struct side *side)
{
    bufferevent_free(side->stream);
    bufferevent_free(side->other->stream);
    free(side->other);
    free(side);
}

/* All that `from` sent has gone out to the other: pass its end on, too. */
static void pass_end_on(struct side *from)
{
    struct side *to = from->other;
    if (!from->ended || to->told || evbuffer_get_length(bufferevent_get_output(to->stream)) > 0)
        return;
    to->told = 1;
    shutdown(bufferevent_getfd(to->stream), SHUT_WR);
    if (to->ended && from->told)
        end_pair(from);
}

static void on_read(struct bufferevent *stream, void *argument)
{
    struct side *side = argument;
    struct bufferevent *to = side->other->stream;
    bufferevent_write_buffer(to, bufferevent_get_input(stream));
    if (evbuffer_get_length(bufferevent_get_output(to)) >= MOST)
        bufferevent_disable(stream, EV_READ);
}

/* Its output has fallen to ENOUGH_LEFT, or (after the other's end) to nothing. */
static void on_written(struct bufferevent *stream, void *argument)
{
    struct side *side = argument;
    (void)stream;
    if (side->other->ended)
        pass_end_on(side->other);
    else
        bufferevent_enable(side->other->stream, EV_READ);
}

static void on_event(struct bufferevent *stream, short what, void *argument)
{
    struct side *side = argument;
    if (what & BEV_EVENT_EOF) {
        on_read(stream, side); /* what came with the end */
        side->ended = 1;
        bufferevent_disable(stream, EV_READ);
        bufferevent_setwatermark(side->other->stream, EV_WRITE, 0, 0);
        pass_end_on(side);
    } else if (what & (BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT)) {
        end_pair(side);
    }
}

static struct side *new_side(struct event_base *base, evutil_socket_t fd)
{
    struct side *side = calloc(1, sizeof(*side));
    if (!side)
        return NULL;
    side->stream = ringpoll_bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!side->stream) {
        free(side);
        return NULL;
    }
    bufferevent_setcb(side->stream, on_read, on_written, on_event, side);
    bufferevent_setwatermark(side->stream, EV_WRITE, ENOUGH_LEFT, 0);
    return side;
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int length,
                      void *unused)
{
    struct event_base *base = evconnlistener_get_base(listener);
    struct side *client = new_side(base, fd), *server = new_side(base, -1);
    (void)address;
    (void)length;
    (void)unused;
    if (!client || !server) {
        if (client)
            bufferevent_free(client->stream);
        else
            evutil_closesocket(fd);
        if (server)
            bufferevent_free(server->stream);
        free(client);
        free(server);
        return;
    }
    client->other = server;
    server->other = client;
    if (bufferevent_socket_connect(server->stream, (struct sockaddr *)&target, target_length) < 0)
        return; /* on_event has been told */
    bufferevent_enable(client->stream, EV_READ);
    bufferevent_enable(server->stream, EV_READ);
}

static void on_signal(evutil_socket_t number, short what, void *base)
{
    (void)number;
    (void)what;
    event_base_loopexit(base, NULL);
}

int main(int argc, char **argv)
{
    struct sockaddr_storage address;
    int length = sizeof(address);
    if (argc != 3 || evutil_parse_sockaddr_port(argv[1], (struct sockaddr *)&address, &length) < 0 ||
        evutil_parse_sockaddr_port(argv[2], (struct sockaddr *)&target, &target_length) < 0) {
        fprintf(stderr, "usage: proxy LISTEN-ADDRESS:PORT TARGET-ADDRESS:PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);

    struct event_base *base = ringpoll_event_base_new(NULL);
    struct evconnlistener *listener = ringpoll_listener_new_bind(
        base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, -1, (struct sockaddr *)&address, length);
    if (!listener) {
        perror("proxy: listen");
        return 1;
    }
    struct event *interrupted = evsignal_new(base, SIGINT, on_signal, base);
    struct event *terminated = evsignal_new(base, SIGTERM, on_signal, base);
    event_add(interrupted, NULL);
    event_add(terminated, NULL);
    printf("proxy from %s to %s, by %s\n", argv[1], argv[2], event_base_get_method(base));
    fflush(stdout);
    event_base_dispatch(base);

    event_free(interrupted);
    event_free(terminated);
    evconnlistener_free(listener);
    event_base_free(base);
    return 0;
}
