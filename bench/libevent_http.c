/* SPDX-License-Identifier: MIT
 *
 * evhttp that answers 1 KiB, in lock-step: the client sends one request on each of n
 * connections, the clock runs until the loop has written n replies, then the client
 * takes them without waiting and looks at every byte. What is missing costs another
 * turn, by the clock.
 *
 * http        connections that stay
 * http-close  one request each; accept and close are by the clock, too, the client's
 *             connect is not
 */
#include "libevent_bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <ringpoll/event.h>

#define BODY 1024
#define REPLY_MOST 4096

struct site {
    struct load *load;
    struct evhttp *http;
    struct sockaddr_in address;
    int *fds;
    uint32_t *taken;
    char body[BODY];
    uint64_t answered;
    uint32_t source;
    bool stays;
};

static void on_answered(struct evhttp_request *request, void *argument)
{
    (void)request;
    ((struct site *)argument)->answered++;
}

static void on_request(struct evhttp_request *request, void *argument)
{
    struct site *site = argument;
    struct evbuffer *body = evbuffer_new();
    evbuffer_add_reference(body, site->body, BODY, NULL, NULL);
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", "text/plain");
    evhttp_request_set_on_complete_cb(request, on_answered, site);
    evhttp_send_reply(request, HTTP_OK, "OK", body);
    evbuffer_free(body);
}

static void site_close(struct load *load)
{
    struct site *site = load->state;
    if (!site)
        return;
    for (uint32_t i = 0; site->fds && i < load->n; i++)
        if (site->fds[i] >= 0)
            close(site->fds[i]);
    if (site->http)
        evhttp_free(site->http);
    free(site->fds);
    free(site->taken);
    free(site);
    load->state = NULL;
}

static int fail(struct load *load, const char *what, uint32_t connection)
{
    snprintf(load->failure, sizeof load->failure, "%s (connection %u): %s", what, connection, strerror(errno));
    return -1;
}

/* From addresses all over 127/8: one alone would meet its own TIME_WAIT. */
static int connect_all(struct load *load)
{
    struct site *site = load->state;
    for (uint32_t i = 0; i < load->n; i++) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        uint32_t serial = site->source++;
        int yes = 1;
        source.sin_addr.s_addr = htonl(0x7f000000u | (1 + serial / 62500 % 200) << 16 | (1 + serial / 250 % 250) << 8 |
                                       (1 + serial % 250));
        site->fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (site->fds[i] < 0 || setsockopt(site->fds[i], IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes) != 0 ||
            bind(site->fds[i], (struct sockaddr *)&source, sizeof source) != 0 ||
            connect(site->fds[i], (struct sockaddr *)&site->address, sizeof site->address) != 0)
            return fail(load, "connect", i);
    }
    return 0;
}

static struct bufferevent *new_object(struct event_base *base, void *unused)
{
    (void)unused;
    return ringpoll_bufferevent_socket_new(base, -1, 0);
}

static struct evhttp_bound_socket *bind_site(struct load *load)
{
    struct site *site = load->state;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (!load->objects)
        return evhttp_bind_socket_with_handle(site->http, "127.0.0.1", 0);
    evhttp_set_bevcb(site->http, new_object, NULL);
    struct evconnlistener *listener = ringpoll_listener_new_bind(
        load->base, NULL, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, 128,
        (struct sockaddr *)&address, sizeof address);
    return listener ? evhttp_bind_listener(site->http, listener) : NULL;
}

static int open_with(struct load *load, bool stays)
{
    struct site *site = calloc(1, sizeof *site);
    if (!site)
        return -1;
    load->state = site;
    site->load = load;
    site->stays = stays;
    site->source = (uint32_t)getpid() * 977u + load->side * 31000u;
    memset(site->body, 'x', sizeof site->body);
    site->fds = malloc(load->n * sizeof site->fds[0]);
    site->taken = calloc(load->n, sizeof site->taken[0]);
    site->http = evhttp_new(load->base);
    if (!site->fds || !site->taken || !site->http)
        return -1;
    for (uint32_t i = 0; i < load->n; i++)
        site->fds[i] = -1;
    evhttp_set_gencb(site->http, on_request, site);
    struct evhttp_bound_socket *bound = bind_site(load);
    socklen_t length = sizeof site->address;
    if (!bound || getsockname((int)evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&site->address, &length) != 0)
        return fail(load, "bind", 0);
    return stays ? connect_all(load) : 0;
}

static int keep_open(struct load *load)
{
    return open_with(load, true);
}

static int close_each(struct load *load)
{
    return open_with(load, false);
}

/* How many connections have not had all yet; -1: it is not what was to come. */
static int take(struct load *load)
{
    struct site *site = load->state;
    int missing = 0;
    for (uint32_t i = 0; i < load->n; i++) {
        char bytes[REPLY_MOST];
        if (site->fds[i] < 0 || site->taken[i] == UINT32_MAX)
            continue;
        ssize_t got = recv(site->fds[i], bytes, sizeof bytes, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) {
            missing++;
            continue;
        }
        if (got < 0 || (got == 0 && site->stays))
            return fail(load, "a reply could not be taken", i);
        if (got > 0) {
            if (site->taken[i] == 0 && (got < 12 || memcmp(bytes, "HTTP/1.1 200", 12) != 0))
                return fail(load, "not a reply", i);
            bool whole = got > BODY && memcmp(bytes + got - BODY, site->body, BODY) == 0;
            site->taken[i] += (uint32_t)got;
            if (!whole)
                return fail(load, "a reply is in pieces, or not what was asked", i);
            if (site->stays) {
                site->taken[i] = UINT32_MAX;
                continue;
            }
            got = recv(site->fds[i], bytes, sizeof bytes, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) {
                missing++;
                continue;
            }
        }
        if (got != 0 || site->taken[i] == 0)
            return fail(load, "a connection did not end as it should", i);
        close(site->fds[i]);
        site->fds[i] = -1;
    }
    return missing;
}

static int site_round(struct load *load)
{
    static const char stay[] = "GET /hello HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    static const char leave[] = "GET /hello HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\r\n";
    struct site *site = load->state;
    const char *request = site->stays ? stay : leave;
    if (!site->stays && connect_all(load) != 0)
        return -1;
    for (uint32_t i = 0; i < load->n; i++) {
        site->taken[i] = 0;
        if (send(site->fds[i], request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
            return fail(load, "send", i);
    }
    uint64_t target = site->answered + load->n, began = load_begin(load);
    for (unsigned turn = 0; turn < 100000 && site->answered < target; turn++)
        event_base_loop(load->base, EVLOOP_ONCE);
    load_end(load, began);
    int missing = take(load);
    for (unsigned turn = 0; turn < 100000 && missing > 0; turn++) {
        began = load_begin(load);
        event_base_loop(load->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        load_end(load, began);
        missing = take(load);
    }
    if (missing > 0)
        return fail(load, "a reply is missing", (uint32_t)missing);
    return missing;
}

static uint32_t site_units(const struct load *load)
{
    return load->n;
}

const struct load_ops load_http = {"http", keep_open, site_round, site_close, site_units};
const struct load_ops load_http_close = {"http-close", close_each, site_round, site_close, site_units};
