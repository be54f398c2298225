/* SPDX-License-Identifier: MIT
 *
 * A server of static files on a stock libuv, by libringpoll-uv: connections, requests, the
 * files' bytes and the answers all go over the loop's ring. GET alone, HTTP/1.1, one request
 * after the other, no directories.
 *
 *     http ADDRESS PORT DIRECTORY
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ringpoll/uv.h>

#define PIECE 65536

struct client {
    ringpoll_uv_tcp_t tcp;
    ringpoll_uv_write_t write;
    ringpoll_uv_fs_t read;
    char request[4096];
    size_t length;        /* of what has come of the request */
    int file;             /* being sent, or -1 */
    int64_t at, size;
    int busy;             /* a read or a write of ours is pending */
    int last;             /* the connection ends with this answer */
    char head[256];
    char piece[PIECE];
};

static const char *directory;

static void on_closed(ringpoll_uv_handle_t *handle)
{
    struct client *client = handle->data;
    if (!client->busy)
        free(client); /* else who is busy does */
    else
        client->last = -1;
}

static void close_client(struct client *client)
{
    if (ringpoll_uv_is_closing((ringpoll_uv_handle_t *)&client->tcp))
        return;
    if (client->file >= 0 && !client->busy) {
        close(client->file);
        client->file = -1;
    }
    ringpoll_uv_close((ringpoll_uv_handle_t *)&client->tcp, on_closed);
}

/* Nothing is pending any more. 1: the connection has gone meanwhile. */
static int over(struct client *client)
{
    client->busy = 0;
    if (!ringpoll_uv_is_closing((ringpoll_uv_handle_t *)&client->tcp))
        return 0;
    if (client->file >= 0)
        close(client->file);
    client->file = -1;
    if (client->last == -1)
        free(client);
    return 1;
}

static void next_request(struct client *client);
static void send_piece(struct client *client);

static void on_written(ringpoll_uv_write_t *req, int status)
{
    struct client *client = req->data;
    if (over(client))
        return;
    if (status < 0)
        close_client(client);
    else
        send_piece(client);
}

static void on_piece(ringpoll_uv_fs_t *req)
{
    struct client *client = req->data;
    if (over(client))
        return;
    uv_buf_t bytes = uv_buf_init(client->piece, (unsigned)req->result);
    client->at += req->result > 0 ? req->result : 0;
    client->busy = 1;
    if (req->result <= 0 ||
        ringpoll_uv_write(&client->write, (ringpoll_uv_stream_t *)&client->tcp, &bytes, 1, on_written) < 0) {
        client->busy = 0; /* it is shorter than it was: the peer must not take it for whole */
        close_client(client);
    }
}

static void send_piece(struct client *client)
{
    uv_buf_t room = uv_buf_init(client->piece, PIECE);
    if (client->file >= 0 && client->at < client->size) {
        if (client->size - client->at < PIECE)
            room.len = (size_t)(client->size - client->at);
        client->busy = 1;
        if (ringpoll_uv_fs_read(client->tcp.loop, &client->read, client->file, &room, 1, client->at, on_piece) == 0)
            return;
        client->busy = 0;
        client->last = 1;
    }
    if (client->file >= 0)
        close(client->file);
    client->file = -1;
    if (client->last)
        close_client(client);
    else
        next_request(client);
}

static void answer(struct client *client, const char *status, int64_t size)
{
    int length = snprintf(client->head, sizeof client->head, "HTTP/1.1 %s\r\nContent-Length: %lld\r\n%s\r\n", status,
                          (long long)size, client->last ? "Connection: close\r\n" : "");
    uv_buf_t bytes = uv_buf_init(client->head, (unsigned)length);
    client->at = 0;
    client->size = size;
    client->busy = 1;
    if (ringpoll_uv_write(&client->write, (ringpoll_uv_stream_t *)&client->tcp, &bytes, 1, on_written) < 0) {
        client->busy = 0;
        close_client(client);
    }
}

static void serve(struct client *client, const char *name)
{
    struct stat status;
    char path[1024];
    int fits = snprintf(path, sizeof path, "%s/%s", directory, name) < (int)sizeof path;
    client->file = fits && !strstr(name, "..") ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (client->file >= 0 && (fstat(client->file, &status) < 0 || !S_ISREG(status.st_mode))) {
        close(client->file);
        client->file = -1;
    }
    if (client->file < 0)
        answer(client, "404 Not Found", 0);
    else
        answer(client, "200 OK", status.st_size);
}

static void next_request(struct client *client)
{
    client->request[client->length] = 0;
    char *end = strstr(client->request, "\r\n\r\n");
    if (client->busy || (!end && client->length < sizeof client->request - 1))
        return;
    char name[512];
    if (!end || sscanf(client->request, "GET /%511[^ \r\n] HTTP/1.", name) != 1) {
        client->last = 1;
        client->length = 0;
        answer(client, "400 Bad Request", 0);
        return;
    }
    *end = 0;
    client->last = strstr(client->request, "Connection: close") != NULL;
    size_t used = (size_t)(end + 4 - client->request);
    client->length -= used;
    memmove(client->request, client->request + used, client->length);
    serve(client, name);
}

static void on_alloc(ringpoll_uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct client *client = handle->data;
    (void)suggested;
    *buf = uv_buf_init(client->request + client->length, (unsigned)(sizeof client->request - 1 - client->length));
}

static void on_read(ringpoll_uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf)
{
    struct client *client = stream->data;
    (void)buf;
    if (nread < 0) { /* also when many requests were sent at once, more than there is room for */
        close_client(client);
        return;
    }
    client->length += (size_t)nread;
    next_request(client);
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
    client->file = -1;
    client->tcp.data = client->write.data = client->read.data = client;
    ringpoll_uv_stream_t *stream = (ringpoll_uv_stream_t *)&client->tcp;
    if (ringpoll_uv_accept(server, stream) < 0 || ringpoll_uv_read_start(stream, on_alloc, on_read) < 0)
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
    int error = argc == 4 ? uv_ip4_addr(argv[1], atoi(argv[2]), &address) : UV_EINVAL;
    signal(SIGPIPE, SIG_IGN);
    if (error == 0)
        error = ringpoll_uv_tcp_init(loop, &server);
    if (error == 0)
        error = ringpoll_uv_tcp_bind(&server, (struct sockaddr *)&address, 0);
    if (error == 0)
        error = ringpoll_uv_listen((ringpoll_uv_stream_t *)&server, 511, on_connection);
    if (error < 0) {
        fprintf(stderr, "http ADDRESS PORT DIRECTORY: %s\n", uv_strerror(error));
        return 1;
    }
    directory = argv[3];
    uv_signal_init(loop, &term);
    uv_signal_start(&term, on_signal, SIGTERM);
    printf("listening on %s:%s\n", argv[1], argv[2]);
    fflush(stdout);
    uv_run(loop, UV_RUN_DEFAULT);
    return 0;
}
