/* SPDX-License-Identifier: MIT
 *
 * An echo server on a stock libuv, by libringpoll-uv: what was received is written back
 * out of the buffer that it was received into, without a copy.
 *
 *     echo ADDRESS PORT
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <ringpoll/uv.h>

struct client {
    ringpoll_uv_tcp_t tcp;
    ringpoll_uv_shutdown_t shutdown;
};

struct answer {
    ringpoll_uv_write_t req;
    struct ringpoll_buffer buffer;
};

static void on_closed(ringpoll_uv_handle_t *handle)
{
    free(handle->data);
}

static void close_client(struct client *client)
{
    if (!ringpoll_uv_is_closing((ringpoll_uv_handle_t *)&client->tcp))
        ringpoll_uv_close((ringpoll_uv_handle_t *)&client->tcp, on_closed);
}

static void on_written(ringpoll_uv_write_t *req, int status)
{
    struct answer *answer = req->data;
    struct client *client = req->handle->data;
    ringpoll_return(&answer->buffer);
    free(answer);
    if (status < 0)
        close_client(client);
}

static void on_shutdown(ringpoll_uv_shutdown_t *req, int status)
{
    (void)status;
    close_client(req->handle->data);
}

static void on_read(ringpoll_uv_stream_t *stream, ssize_t nread, struct ringpoll_buffer *buffer)
{
    struct client *client = stream->data;
    if (nread == UV_EOF && ringpoll_uv_shutdown(&client->shutdown, stream, on_shutdown) == 0)
        return; /* the end goes back behind the last byte */
    if (nread < 0) {
        close_client(client);
        return;
    }
    struct answer *answer = malloc(sizeof *answer);
    uv_buf_t bytes = uv_buf_init(buffer->data, (unsigned)nread);
    if (answer) {
        answer->req.data = answer;
        answer->buffer = *buffer;
        if (ringpoll_uv_write(&answer->req, stream, &bytes, 1, on_written) == 0)
            return;
    }
    free(answer);
    ringpoll_return(buffer);
    close_client(client);
}

static void on_connection(ringpoll_uv_stream_t *server, int status)
{
    struct client *client = status == 0 ? calloc(1, sizeof *client) : NULL;
    if (!client)
        return;
    if (ringpoll_uv_tcp_init(server->loop, &client->tcp) < 0) {
        free(client);
        return;
    }
    client->tcp.data = client;
    ringpoll_uv_stream_t *stream = (ringpoll_uv_stream_t *)&client->tcp;
    if (ringpoll_uv_accept(server, stream) < 0 || ringpoll_uv_read_start_borrowed(stream, on_read) < 0)
        close_client(client);
    else
        ringpoll_uv_tcp_nodelay(&client->tcp, 1);
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)number;
    uv_stop(handle->loop);
}

int main(int argc, char **argv)
{
    uv_loop_t *loop = uv_default_loop();
    ringpoll_uv_tcp_t server;
    uv_signal_t term;
    struct sockaddr_in address;
    int error = argc == 3 ? uv_ip4_addr(argv[1], atoi(argv[2]), &address) : UV_EINVAL;
    signal(SIGPIPE, SIG_IGN);
    if (error == 0)
        error = ringpoll_uv_tcp_init(loop, &server);
    if (error == 0)
        error = ringpoll_uv_tcp_bind(&server, (struct sockaddr *)&address, 0);
    if (error == 0)
        error = ringpoll_uv_listen((ringpoll_uv_stream_t *)&server, 511, on_connection);
    if (error < 0) {
        fprintf(stderr, "echo ADDRESS PORT: %s\n", uv_strerror(error));
        return 1;
    }
    uv_signal_init(loop, &term);
    uv_signal_start(&term, on_signal, SIGTERM);
    printf("listening on %s:%s\n", argv[1], argv[2]);
    fflush(stdout);
    uv_run(loop, UV_RUN_DEFAULT);
    return 0;
}
