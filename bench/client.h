/* SPDX-License-Identifier: MIT
 *
 * The client's half of the lock-step: all that happens while the clock stands.
 * It sends, and later takes what must be there by then: every receive is
 * non-blocking, and a reply that is missing, late, cut or not its own is a
 * proof that failed, with a sentence that says which. A figure without that
 * proof is worth nothing: a reply that leaves after the clock has stopped was
 * not paid for.
 */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "program.h"

struct client {
    int family; /* AF_INET or AF_UNIX */
    int type;   /* SOCK_STREAM, unless somebody says SOCK_DGRAM before it connects */
    struct sockaddr_storage address;
    socklen_t address_length;
    uint32_t connections;
    uint32_t first, active; /* a round is of these connections: all of them at first */
    uint32_t message;    /* bytes of a request */
    int *fds;            /* -1: not connected */
    uint32_t *sent, *taken; /* bytes of this round, per connection */
    uint8_t *request, *reply;
    int fds_above;       /* 0, or the least number of an fd: the program's are to lie close together */
    uint32_t source;     /* counts connections: spreads them over 127.0.0.0/8 */
    uint64_t round;      /* part of every request */
    char failure[128];   /* the first proof that failed; "" */
};

/* All functions: 0, or -1 with `failure` set. */
int client_init(struct client *client, int family, const struct sockaddr_storage *address, socklen_t length,
                uint32_t connections, uint32_t message);
void client_fini(struct client *client);
int client_connect_all(struct client *client);
/* Those of the connections that a round is of. */
int client_connect_active(struct client *client);
void client_close_all(struct client *client);
/* One request on each connection of the next round. */
int client_send_all(struct client *client);
/* A round whose messages do not have to fit into the kernel: begins it; sends what
 * fits and adds that to *ret_sent; whether all has been sent. */
void client_begin(struct client *client);
int client_send_some(struct client *client, uint64_t *ret_sent);
bool client_has_sent_all(const struct client *client);
/* Takes what there is of the replies to this round. The number of connections on
 * which something is missing; -1 also when a byte is wrong, or there is one more. */
int client_take(struct client *client);
/* Sees the end of file of every connection that has not been seen yet. As
 * client_take(). */
int client_see_closed(struct client *client);
/* Sets `failure`: something is still missing. Always -1. */
int client_missing(struct client *client, const char *what);

#endif
