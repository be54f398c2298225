#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""memcached with four threads, through a text, a binary and a meta client."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import random
import select
import signal
import socket
import struct

from harness import (Suite, check, check_ended, check_equal, in_threads, read_exactly, read_until, wait_until)

suite = Suite("memcached", needs=["memcached"], library="libevent", plain=True)
CRLF = b"\r\n"


def start(run, *options, threads=4, expect=True):
    port = run.free_port()
    server = run.start(["memcached", "-l", run.suite.address, "-p", port, "-U", 0, "-t", threads, "-u", "root",
                        "-m", 256] + list(options))
    server.port = port
    run.wait_for_listener(server, port)
    if expect:
        run.expect_ring(server)
    return server


class Text:
    """The classic text protocol (and the meta commands), in lock-step."""

    def __init__(self, run, where):
        self.conn = run.connect(where)

    def line(self, command):
        self.conn.sendall(command + CRLF)
        return read_until(self.conn, CRLF)

    def set(self, key, value, verb=b"set", extra=b""):
        self.conn.sendall(b"%s %s 7 0 %d%s\r\n" % (verb, key, len(value), extra) + value + CRLF)
        return read_until(self.conn, CRLF)

    def get(self, *keys, verb=b"get"):
        """{key: (flags, value)}, and the cas numbers."""
        self.conn.sendall(verb + b" " + b" ".join(keys) + CRLF)
        found, cas = {}, []
        reader = self.conn.makefile("rb")
        while True:
            head = reader.readline()
            if head == b"END\r\n":
                return found, cas
            words = head.split()
            check(words and words[0] == b"VALUE", "unexpected line %r", head)
            found[words[1]] = (int(words[2]), reader.read(int(words[3]) + 2)[:-2])
            cas += [int(words[4])] if len(words) > 4 else []

    def stats(self, what=b""):
        self.conn.sendall(b"stats" + (b" " + what if what else b"") + CRLF)
        return dict(line.split(" ", 2)[1:] for line in read_until(self.conn, b"END\r\n").decode().splitlines()[:-1])

    def quit(self):
        self.conn.sendall(b"quit\r\n")
        return check_ended(self.conn)


class Binary:
    """The binary protocol: magic, opcode, key length, extras length, type, status, body length, opaque, cas."""

    HEAD = struct.Struct(">BBHBBHIIQ")
    OPCODES = {"get": 0, "set": 1, "add": 2, "replace": 3, "delete": 4, "increment": 5, "quit": 7, "flush": 8,
               "getq": 9, "noop": 10, "version": 11, "getk": 12, "append": 14, "setq": 17, "deleteq": 20}

    def __init__(self, run, where):
        self.conn = run.connect(where)

    def pack(self, name, key=b"", value=b"", extras=b"", opaque=0, cas=0):
        body = extras + key + value
        return self.HEAD.pack(0x80, self.OPCODES[name], len(key), len(extras), 0, 0, len(body), opaque, cas) + body

    def reply(self):
        magic, opcode, key_len, extras_len, _, status, body_len, opaque, _ = \
            self.HEAD.unpack(read_exactly(self.conn, self.HEAD.size))
        check_equal(magic, 0x81, "magic")
        body = read_exactly(self.conn, body_len)
        return opcode, status, opaque, body[extras_len:extras_len + key_len], body[extras_len + key_len:]

    def call(self, name, *words, **more):
        self.conn.sendall(self.pack(name, *words, **more))
        return self.reply()

    def set(self, key, value, name="set"):
        return self.call(name, key, value, struct.pack(">II", 9, 0))[1]

    def get(self, key):
        _, status, _, _, value = self.call("get", key)
        return None if status == 1 else value


@suite.case
def text_protocol(run):
    server = start(run)
    client, seen = Text(run, server.port), []
    seen.append(client.line(b"version"))
    seen.append(client.set(b"one", b"first"))
    seen.append(client.get(b"one", b"none"))
    seen.append(client.set(b"one", b"again", verb=b"add"))
    seen.append(client.set(b"two", b"2", verb=b"add"))
    seen.append(client.set(b"two", b"22", verb=b"replace"))
    seen.append(client.set(b"none", b"x", verb=b"replace"))
    seen.append(client.set(b"one", b"-more", verb=b"append"))
    seen.append(client.set(b"one", b"before-", verb=b"prepend"))
    values, cas = client.get(b"one", b"two", verb=b"gets")
    seen.append(values)
    seen.append(client.set(b"one", b"by cas", verb=b"cas", extra=b" %d" % cas[0]))
    seen.append(client.set(b"one", b"by stale cas", verb=b"cas", extra=b" %d" % cas[0]))
    seen.append(client.get(b"one"))
    seen.append(client.set(b"n", b"10"))
    # A number that gets shorter is padded in its place, or gets a place of its own while the
    # maintainer of the LRU looks at it: it is not asked for afterwards.
    seen.append(client.set(b"shrinks", b"10"))
    for command in (b"incr n 5", b"decr n 3", b"decr shrinks 100", b"incr one 1", b"incr none 1", b"touch n 0",
                    b"touch none 0", b"delete two", b"delete two", b"gat 0 n", b"bogus", b"get", b"set x y z a",
                    b"get " + b"k" * 251, b"verbosity 0", b"mn"):
        client.conn.sendall(command + CRLF)
        if command == b"gat 0 n":
            seen.append(read_until(client.conn, b"END\r\n"))
        else:
            seen.append(read_until(client.conn, CRLF))
    client.conn.sendall(b"set quiet 0 0 1 noreply\r\nq\r\nincr n 1 noreply\r\nget quiet n\r\n")
    seen.append(read_until(client.conn, b"END\r\n"))
    seen.append(client.line(b"flush_all"))
    seen.append(client.get(b"one", b"n", b"quiet", b"shrinks"))  # flushed when asked for
    stats = client.stats()
    seen.append([stats[key] for key in ("threads", "cmd_get", "cmd_set", "get_hits", "get_misses", "curr_items")])
    seen.append(client.quit())
    server.end(signal.SIGTERM, 0)
    return seen


@suite.case
def binary_protocol(run):
    server = start(run)
    client, seen = Binary(run, server.port), []
    seen.append(client.call("version"))
    seen.append(client.set(b"a", b"alpha"))
    seen.append(client.get(b"a"))
    seen.append(client.get(b"nothing"))
    seen.append(client.set(b"a", b"again", "add"))
    seen.append(client.call("append", b"a", b"+more"))
    seen.append(client.get(b"a"))
    seen.append(client.call("increment", b"n", b"", struct.pack(">QQI", 3, 40, 0)))
    seen.append(client.call("increment", b"n", b"", struct.pack(">QQI", 3, 40, 0)))
    seen.append(client.call("delete", b"a"))
    seen.append(client.call("delete", b"a"))
    # A quiet pipeline: only hits are answered, the noop ends it.
    batch = b"".join(client.pack("setq", b"k%d" % i, b"v%d" % i * 10, struct.pack(">II", 0, 0)) for i in range(0, 100, 2))
    batch += b"".join(client.pack("getq", b"k%d" % i, opaque=i) for i in range(100)) + client.pack("noop", opaque=999)
    client.conn.sendall(batch)
    while True:
        reply = client.reply()
        seen.append(reply)
        if reply[2] == 999:
            break
    client.conn.sendall(client.pack("quit"))
    seen.append([client.reply()[1], check_ended(client.conn)])
    server.end(signal.SIGTERM, 0)
    return seen


@suite.case
def meta_protocol(run):
    server = start(run)
    client, seen = Text(run, server.port), []

    def meta(command, value=None):
        client.conn.sendall(command + CRLF + (value + CRLF if value is not None else b""))
        head = read_until_line(client.conn)
        words = head.split()
        return [head, read_exactly(client.conn, int(words[1]) + 2)] if words[0] == b"VA" else head

    seen.append(meta(b"ms key 5 T0 F3", b"hello"))
    seen.append(meta(b"mg key v f k s"))
    seen.append(meta(b"mg none v"))
    seen.append(meta(b"ms key 2 ME", b"no"))
    seen.append(meta(b"ms key 3 MA", b"+++"))
    seen.append(meta(b"mg key v Oopaque"))
    seen.append(meta(b"ma count N0 J13 v"))
    seen.append(meta(b"ma count D7 v"))
    seen.append(meta(b"md key I T30"))
    seen.append(meta(b"mg key v t"))
    seen.append(meta(b"md key"))
    # Quiet gets: misses say nothing.
    client.conn.sendall(b"mg none q v k\r\nmg count q v k\r\nmn\r\n")
    seen.append(read_until(client.conn, b"MN\r\n"))
    server.end(signal.SIGTERM, 0)
    return seen


def read_until_line(conn):
    line = b""
    while not line.endswith(CRLF):
        line += read_exactly(conn, 1)
    return line


@suite.case
def values_of_one_megabyte(run):
    """Larger than any socket buffer: the server's writes stop and go on."""
    server = start(run, "-I", "2m")
    generator = random.Random(suite.seed)
    values = {b"big%d" % i: generator.randbytes((1 << 20) - 100 + 17 * i) for i in range(12)}

    def store(items):
        client = Text(run, server.port)
        for key, value in items:
            data = b"set %s 0 0 %d\r\n" % (key, len(value)) + value + CRLF
            while data:
                size = generator.choice((1, 1000, 4096, 70001, 400000))
                client.conn.sendall(data[:size])
                data = data[size:]
            check_equal(read_until(client.conn, CRLF), b"STORED\r\n", "reply")

    def fetch(items):
        client = Text(run, server.port)
        client.conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        # All asked for at once, read afterwards: the replies back up in the server.
        client.conn.sendall(b"".join(b"get %s\r\n" % key for key, _ in items))
        for key, value in items:
            want = b"VALUE %s 0 %d\r\n" % (key, len(value)) + value + b"\r\nEND\r\n"
            check(read_exactly(client.conn, len(want)) == want, "the value of %r differs", key)

    items = list(values.items())
    in_threads([lambda part=items[i::4]: store(part) for i in range(4)])
    in_threads([lambda: fetch(items) for _ in range(4)])
    binary = Binary(run, server.port)
    for key, value in items:
        check(binary.get(key) == value, "the value of %r differs through the binary client", key)
    too_big = Text(run, server.port)
    too_big.conn.sendall(b"set big 0 0 3000000\r\n" + b"x" * 3000000 + CRLF + b"mn\r\n")
    seen = [read_until_line(too_big.conn), read_until_line(too_big.conn)]
    server.end(signal.SIGTERM, 0)
    return seen


@suite.case
def pipelined(run):
    """Ten thousand commands on the wire before the first reply is read."""
    server = start(run)
    count = 10000

    def one(number):
        conn = run.connect(server.port)
        prefix = b"p%d-" % number
        commands = b"".join(b"set %s%d 0 0 4\r\n%04d\r\nget %s%d\r\n" % (prefix, i, i % 10000, prefix, i)
                            for i in range(count // 4))
        want = b"".join(b"STORED\r\nVALUE %s%d 0 4\r\n%04d\r\nEND\r\n" % (prefix, i, i % 10000)
                        for i in range(count // 4))
        got = in_threads([lambda: conn.sendall(commands), lambda: read_exactly(conn, len(want))])[1]
        check(got == want, "client %d got other replies", number)
        return len(got)

    sizes = in_threads([lambda number=number: one(number) for number in range(8)])
    server.end(signal.SIGTERM, 0)
    return sizes


@suite.case
def two_clients_keep_their_model(run):
    """Random operations by a text and a binary client, each reply checked against a model."""
    server = start(run)

    def play(make, seed):
        generator, model, client = random.Random(seed), {}, make()
        prefix = b"m%d-" % seed
        for _ in range(3000):
            key = prefix + b"%d" % generator.randrange(40)
            choice = generator.random()
            if choice < 0.45:
                if isinstance(client, Text):
                    value = client.get(key)[0].get(key)
                    value = value[1] if value else None
                else:
                    value = client.get(key)
                check(value == model.get(key), "%r is not what was stored", key)
            elif choice < 0.85:
                value = generator.randbytes(generator.choice((0, 1, 10, 100, 1000, 10000)))
                if isinstance(client, Text):
                    check_equal(client.set(key, value), b"STORED\r\n", "reply")
                else:
                    check_equal(client.set(key, value), 0, "status")
                model[key] = value
            else:
                if isinstance(client, Text):
                    check_equal(client.line(b"delete " + key), b"DELETED\r\n" if key in model else b"NOT_FOUND\r\n",
                                "reply")
                else:
                    check_equal(client.call("delete", key)[1], 0 if key in model else 1, "status")
                model.pop(key, None)
        return sorted(key.decode() for key in model)

    kinds = [Text, Binary, Text, Binary]
    models = in_threads([lambda kind=kind, seed=seed: play(lambda: kind(run, server.port), seed)
                         for seed, kind in enumerate(kinds)])
    server.end(signal.SIGTERM, 0)
    return models


@suite.case
def two_hundred_connections(run):
    server = start(run, "-c", 1024)
    clients = [Text(run, server.port) for _ in range(200)]
    watcher = Text(run, server.port)

    def drive(part):
        for turn in range(20):
            for number, client in part:
                client.conn.sendall(b"set c%d 0 0 4\r\n%04d\r\nget c%d\r\n" % (number, turn, number))
            for number, client in part:
                check_equal(read_until(client.conn, b"END\r\n"),
                            b"STORED\r\nVALUE c%d 0 4\r\n%04d\r\nEND\r\n" % (number, turn), "reply")

    numbered = list(enumerate(clients))
    in_threads([lambda part=numbered[i::8]: drive(part) for i in range(8)])
    opened = int(watcher.stats()["curr_connections"])
    ends = []
    for number, client in numbered:
        if number % 4 == 0:
            client.conn.close()
        elif number % 4 == 1:
            client.conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.conn.close()
        elif number % 4 == 2:
            client.conn.shutdown(socket.SHUT_WR)
            ends.append(check_ended(client.conn))
        else:
            ends.append(client.quit())
    wait_until(lambda: int(watcher.stats()["curr_connections"]) == opened - 200, "all 200 connections are gone")
    open_fds = len(os.listdir("/proc/%d/fd" % server.pid)) if run.mode == "epoll" else None
    again = Text(run, server.port)
    check_equal(again.line(b"mn"), b"MN\r\n", "reply")
    server.end(signal.SIGTERM, 0)
    check(open_fds is None or open_fds < 100, "fds leak on plain epoll")
    return [opened, ends]


@suite.case
def churn(run):
    """Connect, ask, close: two thousand times by four clients; no fd may stay."""
    server = start(run)
    watcher = Text(run, server.port)
    alone = watcher.stats()["curr_connections"]
    for _ in range(8):
        Text(run, server.port).quit()
    before = len(os.listdir("/proc/%d/fd" % server.pid))

    def one(number):
        for turn in range(500):
            client = Text(run, server.port)
            check_equal(client.line(b"incr none%d 1" % number), b"NOT_FOUND\r\n", "reply")
            if turn % 2:
                client.quit()
            client.conn.close()
            run.sockets.remove(client.conn)

    in_threads([lambda number=number: one(number) for number in range(4)])
    wait_until(lambda: watcher.stats()["curr_connections"] == alone, "only the watcher is left")
    wait_until(lambda: len(os.listdir("/proc/%d/fd" % server.pid)) <= before, "no more fds than before", 10)
    server.end(signal.SIGTERM, 0)


@suite.case
def connection_limit_stops_and_resumes(run):
    """At the limit memcached takes its listener out of the loop, and back in after a close."""
    server = start(run, "-c", 60, "-o", "no_maxconns_fast")
    served, turns = [], 0
    while True:
        client = Text(run, server.port)
        client.conn.sendall(b"mn\r\n")
        if not is_readable(client.conn, 0.5):
            break
        check_equal(read_until(client.conn, b"MN\r\n"), b"MN\r\n", "reply")
        served.append(client)
        check(len(served) < 60, "there is no limit")
    while turns < 8:
        # Whoever leaves makes room for the one that waits; then the next one waits.
        served.pop(0).conn.close()
        check_equal(read_until(client.conn, b"MN\r\n"), b"MN\r\n", "reply")
        served.append(client)
        client = Text(run, server.port)
        client.conn.sendall(b"mn\r\n")
        turns += 1
    check(len(served) >= 10, "only %d connections were served", len(served))
    server.end(signal.SIGTERM, 0)
    return turns


def is_readable(conn, timeout):
    return bool(select.select([conn], [], [], timeout)[0])


@suite.case
def idle_connections_are_closed_by_another_thread(run):
    server = start(run, "-o", "idle_timeout=1")
    clients = [Text(run, server.port) for _ in range(8)]
    for client in clients:
        check_equal(client.line(b"mn"), b"MN\r\n", "reply")
    ends = [check_ended(client.conn, timeout=20) for client in clients]
    server.end(signal.SIGTERM, 0)
    return ends


@suite.case
def unix_socket_and_udp(run):
    """An AF_UNIX listener; a datagram socket; both exist beside the loop's other fds."""
    path = os.path.join(run.directory, "socket")
    server = run.start(["memcached", "-s", path, "-t", 2, "-u", "root"])
    run.wait_for_listener(server, path)
    run.expect_ring(server)
    clients, seen = [Text(run, path) for _ in range(10)], []
    for number, client in enumerate(clients):
        seen.append(client.set(b"k%d" % number, b"v" * (number * 9000)))
        seen.append(len(client.get(b"k%d" % number)[0][b"k%d" % number][1]))
    seen.append([client.quit() for client in clients])
    server.end(signal.SIGTERM, 0)

    port = run.free_port()
    server = run.start(["memcached", "-l", run.suite.address, "-p", port, "-U", port, "-t", 4, "-u", "root"])
    run.wait_for_listener(server, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((run.suite.address, port))
        udp.settimeout(10)
        for number in range(50):
            udp.send(struct.pack(">HHHH", number, 0, 1, 0) + b"set u%d 0 0 2\r\n%02d\r\n" % (number, number))
            seen.append(udp.recv(2000))
            udp.send(struct.pack(">HHHH", number, 0, 1, 0) + b"get u%d\r\n" % number)
            seen.append(udp.recv(2000))
    client = Text(run, port)
    seen.append(client.get(b"u7"))
    server.end(signal.SIGTERM, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((run.suite.address, port))
    return seen


@suite.case
def killed_and_bound_again(run):
    seen = []
    for conns in (0, 40):
        server = start(run, expect=False)
        clients = [Text(run, server.port) for _ in range(conns)]
        for client in clients:
            check_equal(client.line(b"mn"), b"MN\r\n", "reply")
        run.kill_and_rebind(server, server.port, [client.conn for client in clients])
        # And by a real server at once.
        again = run.start(["memcached", "-l", run.suite.address, "-p", server.port, "-U", 0, "-u", "root"])
        run.wait_for_listener(again, server.port)
        seen.append(Text(run, server.port).line(b"mn"))
        again.end(signal.SIGTERM, 0)
    return seen


@suite.case
def ended_and_bound_again(run):
    seen = []
    for number in (signal.SIGTERM, signal.SIGINT):
        for conns in (0, 20):
            server = start(run, expect=False)
            clients = [Text(run, server.port) for _ in range(conns)]
            for client in clients:
                check_equal(client.line(b"mn"), b"MN\r\n", "reply")
            server.end(number, 0)
            run.check_port_is_free(server.port, reuse=bool(conns))
            seen.append([check_ended(client.conn) for client in clients])
    return seen


if __name__ == "__main__":
    suite.main()
