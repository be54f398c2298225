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
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rawcall.h"

#define WORDS (REQUEST_SIZE / sizeof(uint64_t))

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
                uint32_t connections)
{
    memset(client, 0, sizeof *client);
    client->family = family;
    client->address = *address;
    client->address_length = length;
    client->connections = connections;
    /* Two processes that talk to one machine's loopback start at other places. */
    client->source = (uint32_t)getpid() * 977u;
    client->fds = malloc(connections * sizeof client->fds[0]);
    if (client->fds == NULL)
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
    client->fds = NULL;
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

int client_connect_all(struct client *client)
{
    for (uint32_t i = 0; i < client->connections; i++) {
        long fd = raw_call(SYS_socket, client->family, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0, 0);
        if (fd < 0)
            return fail(client, "socket", i, fd);
        client->fds[i] = (int)fd;
        long rc = 0;
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

static void request(const struct client *client, uint32_t connection, uint64_t words[WORDS])
{
    uint64_t seed = client->round << 20 | connection;
    for (size_t i = 0; i < WORDS; i++)
        words[i] = seed + i * UINT64_C(0x9e3779b97f4a7c15);
}

int client_send_all(struct client *client)
{
    uint64_t words[WORDS];
    client->round++;
    for (uint32_t i = 0; i < client->connections; i++) {
        request(client, i, words);
        long sent = raw_call(SYS_sendto, client->fds[i], (long)words, sizeof words, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
        if (sent != (long)sizeof words)
            return fail(client, "a request could not be sent", i, sent);
    }
    return 0;
}

int client_take_all(struct client *client)
{
    uint64_t expected[WORDS];
    uint64_t reply[2 * WORDS];
    for (uint32_t i = 0; i < client->connections; i++) {
        request(client, i, expected);
        long got = raw_call(SYS_recvfrom, client->fds[i], (long)reply, sizeof reply, MSG_DONTWAIT, 0, 0);
        if (got != (long)sizeof expected)
            return fail(client, "a reply was not there when the clock stopped", i, got);
        if (memcmp(reply, expected, sizeof expected) != 0)
            return fail(client, "a reply is not what was asked", i, got);
    }
    return 0;
}

int client_prove_closed(struct client *client)
{
    char byte;
    for (uint32_t i = 0; i < client->connections; i++) {
        long got = raw_call(SYS_recvfrom, client->fds[i], (long)&byte, 1, MSG_DONTWAIT, 0, 0);
        if (got != 0)
            return fail(client, "a closed connection's end was not there when the clock stopped", i, got);
    }
    return 0;
}
