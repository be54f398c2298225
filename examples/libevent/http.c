/* SPDX-License-Identifier: MIT
 *
 * An HTTP server with evhttp, on io_uring: http [ADDRESS PORT]
 *
 *   GET /hello      one KiB of text
 *   POST /upper     the body, in upper case
 *
 * evhttp knows nothing of it: its base is on the ring.
 */
#include <ctype.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <ringpoll/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
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

static void on_signal(evutil_socket_t number, short what, void *base)
{
    (void)number;
    (void)what;
    event_base_loopexit(base, NULL);
}

int main(int argc, char **argv)
{
    const char *address = argc > 2 ? argv[1] : "127.0.0.1";
    int port = argc > 2 ? atoi(argv[2]) : 8080;
    static char text[1024];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\n';
    signal(SIGPIPE, SIG_IGN);

    struct event_base *base = ringpoll_event_base_new(NULL);
    struct evhttp *http = evhttp_new(base);
    if (!http || evhttp_bind_socket(http, address, (ev_uint16_t)port) < 0) {
        fprintf(stderr, "http: cannot listen on %s port %d\n", address, port);
        return 1;
    }
    evhttp_set_allowed_methods(http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST);
    evhttp_set_max_body_size(http, 16 << 20);
    evhttp_set_cb(http, "/hello", hello, text);
    evhttp_set_cb(http, "/upper", upper, NULL);
    struct event *interrupted = evsignal_new(base, SIGINT, on_signal, base);
    struct event *terminated = evsignal_new(base, SIGTERM, on_signal, base);
    event_add(interrupted, NULL);
    event_add(terminated, NULL);
    printf("http on %s:%d, by %s\n", address, port, event_base_get_method(base));
    fflush(stdout);
    event_base_dispatch(base);

    event_free(interrupted);
    event_free(terminated);
    evhttp_free(http);
    event_base_free(base);
    return 0;
}
