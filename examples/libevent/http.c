/* SPDX-License-Identifier: MIT
 *
 * An HTTP server with evhttp, on io_uring: http [ADDRESS:PORT]
 *
 *   GET /hello      one KiB of text
 *   POST /upper     the body, in upper case
 *
 * evhttp knows nothing of it: its base is on the ring, and so are the bufferevents and
 * the listener that it is given.
 */
#include <ctype.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <ringpoll/event.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static void hello(struct evhttp_request *request, void *text)
{
    struct evbuffer *body = evbuffer_new();
    evbuffer_add_reference(body, text, 1024, NULL, NULL);
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", "text/plain");
    evhttp_send_reply(request, HTTP_OK, "OK", body);
    evbuffer_free(body);
}

static void upper(struct evhttp_request *request, void *unused)
{
    (void)unused;
    struct evbuffer *input = evhttp_request_get_input_buffer(request), *body = evbuffer_new();
    evbuffer_add_buffer(body, input);
    size_t length = evbuffer_get_length(body);
    unsigned char *bytes = evbuffer_pullup(body, -1);
    for (size_t i = 0; i < length; i++)
        bytes[i] = (unsigned char)toupper(bytes[i]);
    evhttp_send_reply(request, HTTP_OK, "OK", body);
    evbuffer_free(body);
}

static struct bufferevent *new_connection(struct event_base *base, void *unused)
{
    (void)unused;
    return ringpoll_bufferevent_socket_new(base, -1, 0);
}

static void on_signal(evutil_socket_t number, short what, void *base)
{
    (void)number;
    (void)what;
    event_base_loopexit(base, NULL);
}

int main(int argc, char **argv)
{
    const char *where = argc > 1 ? argv[1] : "127.0.0.1:8080";
    struct sockaddr_storage address;
    int length = sizeof(address);
    if (evutil_parse_sockaddr_port(where, (struct sockaddr *)&address, &length) < 0) {
        fprintf(stderr, "http: '%s' is no ADDRESS:PORT\n", where);
        return 2;
    }
    static char text[1024];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\n';
    signal(SIGPIPE, SIG_IGN);

    struct event_base *base = ringpoll_event_base_new(NULL);
    struct evhttp *http = evhttp_new(base);
    struct evconnlistener *listener = ringpoll_listener_new_bind(
        base, NULL, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, 128,
        (struct sockaddr *)&address, length);
    if (!http || !listener || !evhttp_bind_listener(http, listener)) {
        perror("http: listen");
        return 1;
    }
    evhttp_set_bevcb(http, new_connection, NULL);
    evhttp_set_allowed_methods(http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST);
    evhttp_set_max_body_size(http, 16 << 20);
    evhttp_set_cb(http, "/hello", hello, text);
    evhttp_set_cb(http, "/upper", upper, NULL);
    struct event *interrupted = evsignal_new(base, SIGINT, on_signal, base);
    struct event *terminated = evsignal_new(base, SIGTERM, on_signal, base);
    event_add(interrupted, NULL);
    event_add(terminated, NULL);
    printf("http on %s, by %s\n", where, event_base_get_method(base));
    fflush(stdout);
    event_base_dispatch(base);

    event_free(interrupted);
    event_free(terminated);
    evhttp_free(http);
    event_base_free(base);
    return 0;
}
