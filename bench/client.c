/* SPDX-License-Identifier: MIT
 *
 * See client.h. Everything here goes past a preloaded library (rawcall.h): the
 * program's fds are the only ones that the shim hears of.
 *
 * Connections come from source addresses spread over 127.0.0.0/8. Tens of
 * thousands of short connections from one address would meet their own
 * TIME_WAIT, and connect() would measure the kernel's search for a free port.
 */
#include "client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rawcall.h"

/* What one receive asks beyond the message: a byte too many is seen. */
#define BEYOND 64

static int fail(struct client *client, const char *what, uint32_t connection, long result)
{
    if (client->failure[0] == '\0') {
        if (result < 0)
            snprintf(client->failure, sizeof client->failure, "%s (connection %u of %u, round %llu): %s", what,
                     connection + 1, client->connections, (unsigned long long)client->round,
                     strerror((int)-result));
        else
            snprintf(client->failure, sizeof client->failure, "%s (connection %u of %u, round %llu): got %ld", what,
                     connection + 1, client->connections, (unsigned long long)client->round, result);
    }
    return -1;
}

int client_init(struct client *client, int family, const struct sockaddr_storage *address, socklen_t length,
                uint32_t connections, uint32_t message)
{
    memset(client, 0, sizeof *client);
    client->family = family;
    client->type = SOCK_STREAM;
    client->address = *address;
    client->address_length = length;
    client->connections = client->active = connections;
    client->message = message;
    /* Two processes that talk to one machine's loopback start at other places. */
    client->source = (uint32_t)getpid() * 977u;
    client->fds = malloc(connections * sizeof client->fds[0]);
    client->sent = calloc(connections, sizeof client->sent[0]);
    client->taken = calloc(connections, sizeof client->taken[0]);
    client->request = malloc(message + sizeof(uint64_t));
    client->reply = malloc(message + BEYOND);
    if (client->fds == NULL || client->sent == NULL || client->taken == NULL || client->request == NULL ||
        client->reply == NULL)
        return fail(client, "no memory", 0, -ENOMEM);
    for (uint32_t i = 0; i < connections; i++)
        client->fds[i] = -1;
    return 0;
}

void client_fini(struct client *client)
{
    if (client->fds != NULL)
        client_close_all(client);
    free(client->fds);
    free(client->sent);
    free(client->taken);
    free(client->request);
    free(client->reply);
    client->fds = NULL;
    client->sent = client->taken = NULL;
    client->request = client->reply = NULL;
}

static int bind_source(struct client *client, int fd)
{
    struct sockaddr_in source = {.sin_family = AF_INET};
    uint32_t serial = client->source++;
    int yes = 1;
    /* 127.1.1.1 to 127.200.250.250; the port is chosen by connect(), which
     * looks at the whole four-tuple. */
    source.sin_addr.s_addr = htonl(0x7f000000u | (1 + serial / 62500 % 200) << 16 | (1 + serial / 250 % 250) << 8 |
                                   (1 + serial % 250));
    long rc = raw_call(SYS_setsockopt, fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, (long)&yes, sizeof yes, 0);
    if (rc == 0)
        rc = raw_call(SYS_bind, fd, (long)&source, sizeof source, 0, 0, 0);
    return (int)rc;
}

/* A large reply has to lie in this socket before anybody reads it: what the kernel
 * would send on when the client makes room was not paid for by the clock. And what
 * is left of a large request must not wait for an acknowledgement. */
static void prepare_for_large(struct client *client, int fd)
{
    int yes = 1, size = 4 << 20;
    if (raw_call(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVBUFFORCE, (long)&size, sizeof size, 0) != 0)
        raw_call(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVBUF, (long)&size, sizeof size, 0);
    if (client->family == AF_INET)
        raw_call(SYS_setsockopt, fd, IPPROTO_TCP, TCP_NODELAY, (long)&yes, sizeof yes, 0);
}

int client_connect_all(struct client *client)
{
    client->first = 0;
    client->active = client->connections;
    return client_connect_active(client);
}

int client_connect_active(struct client *client)
{
    for (uint32_t i = client->first; i < client->first + client->active; i++) {
        long fd = raw_call(SYS_socket, client->family, client->type | SOCK_CLOEXEC, 0, 0, 0, 0);
        if (fd >= 0 && client->fds_above > 0) {
            long low = fd;
            fd = raw_call(SYS_fcntl, low, F_DUPFD_CLOEXEC, client->fds_above, 0, 0, 0);
            raw_call(SYS_close, low, 0, 0, 0, 0, 0);
        }
        if (fd < 0)
            return fail(client, "socket", i, fd);
        client->fds[i] = (int)fd;
        long rc = 0;
        if (client->message > REQUEST_SIZE)
            prepare_for_large(client, (int)fd);
        if (client->family == AF_INET)
            rc = bind_source(client, (int)fd);
        if (rc == 0)
            rc = raw_call(SYS_connect, fd, (long)&client->address, client->address_length, 0, 0, 0);
        if (rc != 0)
            return fail(client, "connect", i, rc);
    }
    return 0;
}

void client_close_all(struct client *client)
{
    for (uint32_t i = 0; i < client->connections; i++) {
        if (client->fds[i] >= 0)
            raw_call(SYS_close, client->fds[i], 0, 0, 0, 0, 0);
        client->fds[i] = -1;
    }
}

static void make_request(struct client *client, uint32_t connection)
{
    uint64_t word = client->round << 20 | connection;
    for (uint32_t at = 0; at < client->message; at += sizeof word) {
        memcpy(client->request + at, &word, sizeof word);
        word += UINT64_C(0x9e3779b97f4a7c15);
    }
}

void client_begin(struct client *client)
{
    client->round++;
    memset(client->sent, 0, client->connections * sizeof client->sent[0]);
    memset(client->taken, 0, client->connections * sizeof client->taken[0]);
}

int client_send_some(struct client *client, uint64_t *ret_sent)
{
    for (uint32_t i = client->first; i < client->first + client->active; i++) {
        uint32_t left = client->message - client->sent[i];
        if (left == 0)
            continue;
        make_request(client, i);
        long sent = raw_call(SYS_sendto, client->fds[i], (long)(client->request + client->sent[i]), left,
                             MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
        if (sent == -EAGAIN)
            continue;
        if (sent <= 0)
            return fail(client, "a request could not be sent", i, sent);
        client->sent[i] += (uint32_t)sent;
        *ret_sent += (uint64_t)sent;
    }
    return 0;
}

bool client_has_sent_all(const struct client *client)
{
    for (uint32_t i = client->first; i < client->first + client->active; i++)
        if (client->sent[i] != client->message)
            return false;
    return true;
}

int client_send_all(struct client *client)
{
    uint64_t sent = 0;
    client_begin(client);
    if (client_send_some(client, &sent) != 0)
        return -1;
    for (uint32_t i = client->first; i < client->first + client->active; i++)
        if (client->sent[i] != client->message)
            return fail(client, "a request did not fit into the kernel's buffers", i, client->sent[i]);
    return 0;
}

int client_take(struct client *client)
{
    int missing = 0;
    for (uint32_t i = client->first; i < client->first + client->active; i++) {
        uint32_t *taken = &client->taken[i];
        if (*taken == client->message)
            continue;
        make_request(client, i);
        while (*taken < client->message) {
            long got = raw_call(SYS_recvfrom, client->fds[i], (long)client->reply,
                                (long)(client->message - *taken + BEYOND), MSG_DONTWAIT, 0, 0);
            if (got == -EAGAIN) {
                missing++;
                break;
            }
            if (got <= 0)
                return fail(client, "a reply could not be taken", i, got);
            if (got > (long)(client->message - *taken))
                return fail(client, "a reply is longer than what was asked", i, got);
            if (memcmp(client->reply, client->request + *taken, (size_t)got) != 0)
                return fail(client, "a reply is not what was asked", i, got);
            *taken += (uint32_t)got;
        }
    }
    return missing;
}

int client_see_closed(struct client *client)
{
    int missing = 0;
    for (uint32_t i = client->first; i < client->first + client->active; i++) {
        char byte;
        if (client->fds[i] < 0)
            continue;
        long got = raw_call(SYS_recvfrom, client->fds[i], (long)&byte, 1, MSG_DONTWAIT, 0, 0);
        if (got == -EAGAIN) {
            missing++;
            continue;
        }
        if (got != 0)
            return fail(client, "a connection did not end as it should", i, got);
        raw_call(SYS_close, client->fds[i], 0, 0, 0, 0, 0);
        client->fds[i] = -1;
    }
    return missing;
}

int client_missing(struct client *client, const char *what)
{
    for (uint32_t i = client->first; i < client->first + client->active; i++)
        if (client->fds[i] >= 0 && client->taken[i] != client->message)
            return fail(client, what, i, client->taken[i]);
    return fail(client, what, client->first, 0);
}
