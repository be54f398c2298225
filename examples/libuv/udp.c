/* SPDX-License-Identifier: MIT
 *
 * A responder for datagrams on a stock libuv, by libringpoll-uv: each one goes back to its
 * sender in capitals. Many are received by one call, and answered by one.
 *
 *     udp ADDRESS PORT
 */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <ringpoll/uv.h>

struct answer {
    ringpoll_uv_udp_send_t req;
    char bytes[2048];
};

static void on_alloc(ringpoll_uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct answer *answer = malloc(sizeof *answer);
    (void)handle;
    (void)suggested;
    *buf = answer ? uv_buf_init(answer->bytes, sizeof answer->bytes) : uv_buf_init(NULL, 0);
}

static struct answer *answer_of(const uv_buf_t *buf)
{
    return buf->base ? (struct answer *)(buf->base - offsetof(struct answer, bytes)) : NULL;
}

static void on_sent(ringpoll_uv_udp_send_t *req, int status)
{
    (void)status; /* a datagram that is lost is lost */
    free(req->data);
}

static void on_receive(ringpoll_uv_udp_t *udp, ssize_t nread, const uv_buf_t *buf, const struct sockaddr *from,
                       unsigned flags)
{
    struct answer *answer = answer_of(buf);
    if (nread < 0 || !from || (flags & UV_UDP_PARTIAL)) {
        free(answer);
        return;
    }
    for (ssize_t i = 0; i < nread; i++)
        answer->bytes[i] = (char)toupper((unsigned char)answer->bytes[i]);
    uv_buf_t bytes = uv_buf_init(answer->bytes, (unsigned)nread);
    answer->req.data = answer;
    if (ringpoll_uv_udp_send(&answer->req, udp, &bytes, 1, from, on_sent) < 0)
        free(answer);
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)number;
    uv_stop(handle->loop);
}

int main(int argc, char **argv)
{
    uv_loop_t *loop = uv_default_loop();
    ringpoll_uv_udp_t udp;
    uv_signal_t term;
    struct sockaddr_in address;
    int error = argc == 3 ? uv_ip4_addr(argv[1], atoi(argv[2]), &address) : UV_EINVAL;
    if (error == 0)
        error = ringpoll_uv_udp_init(loop, &udp);
    if (error == 0)
        error = ringpoll_uv_udp_bind(&udp, (struct sockaddr *)&address, 0);
    if (error == 0)
        error = ringpoll_uv_udp_recv_start(&udp, on_alloc, on_receive);
    if (error < 0) {
        fprintf(stderr, "udp ADDRESS PORT: %s\n", uv_strerror(error));
        return 1;
    }
    uv_signal_init(loop, &term);
    uv_signal_start(&term, on_signal, SIGTERM);
    printf("listening on %s:%s\n", argv[1], argv[2]);
    fflush(stdout);
    uv_run(loop, UV_RUN_DEFAULT);
    return 0;
}
