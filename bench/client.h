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

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "program.h"

struct client {
    int family; /* AF_INET or AF_UNIX */
    struct sockaddr_storage address;
    socklen_t address_length;
    uint32_t connections;
    int *fds;            /* -1: not connected */
    uint32_t source;     /* counts connections: spreads them over 127.0.0.0/8 */
    uint64_t round;      /* part of every request */
    char failure[128];   /* the first proof that failed; "" */
};

/* All functions: 0, or -1 with `failure` set. */
int client_init(struct client *client, int family, const struct sockaddr_storage *address, socklen_t length,
                uint32_t connections);
void client_fini(struct client *client);
int client_connect_all(struct client *client);
void client_close_all(struct client *client);
/* One request on each connection; */
int client_send_all(struct client *client);
/* The replies to the last client_send_all() are there, whole, and no byte more. */
int client_take_all(struct client *client);
/* Every peer has closed: end of file, now. */
int client_prove_closed(struct client *client);

#endif
