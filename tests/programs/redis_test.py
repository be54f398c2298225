#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""redis-server (its own event loop, ae.c) with redis-benchmark and a client of our own."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import random
import re
import select
import signal
import socket
import threading
import time

from harness import Failure, Suite, check, check_ended, check_equal, in_threads, wait_until

suite = Suite("redis", needs=["redis-server", "redis-cli", "redis-benchmark"])


def start(run, *options, expect=True, directory=None):
    port = run.free_port()
    where = directory or os.path.join(run.directory, "redis-%d" % port)
    os.makedirs(where, exist_ok=True)
    server = run.start(["redis-server", "--bind", suite.address, "--port", port, "--dir", where, "--save", "",
                        "--protected-mode", "no", "--daemonize", "no"] + list(options))
    server.port, server.directory = port, where
    run.wait_for_listener(server, port)
    if expect:
        run.expect_ring(server)
    return server


class Error(str):
    """An error reply, as a value."""


class Client:
    """RESP2."""

    def __init__(self, run, where):
        self.conn = run.connect(where)
        self.reader = self.conn.makefile("rb", buffering=1 << 16)

    @staticmethod
    def pack(*words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        return b"".join(parts)

    def send(self, *words):
        self.conn.sendall(self.pack(*words))

    def reply(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise Failure("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return Error("-" + rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.reader.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        raise Failure("not a reply: %r" % line)

    def close(self):
        """Both: the reader holds the socket too."""
        self.reader.close()
        self.conn.close()

    def __call__(self, *words):
        self.send(*words)
        return self.reply()

    def info(self, key):
        return re.search(r"^%s:(.*?)\r?$" % key, self("INFO", "everything").decode(), re.M).group(1)


def shutdown(client, server):
    """SHUTDOWN answers nothing: the connection ends."""
    client.send("SHUTDOWN", "NOSAVE")
    end = check_ended(client.conn)
    server.finish(0)
    server.run.check_port_is_free(server.port, reuse=True)
    return end



@suite.case
def commands(run):
    server = start(run)
    call, seen = Client(run, server.port), []
    for words in (("PING",), ("SET", "k", "v"), ("GET", "k"), ("GET", "none"), ("INCR", "n"), ("INCRBY", "n", 41),
                  ("INCR", "k"), ("RPUSH", "l", "a", "b", "c"), ("LRANGE", "l", 0, -1), ("SADD", "s", 1, 2, 3),
                  ("SCARD", "s"), ("ZADD", "z", 1, "one", 2, "two"), ("ZRANGE", "z", 0, -1, "WITHSCORES"),
                  ("HSET", "h", "f", 1, "g", 2), ("HGETALL", "h"), ("EVAL", "return redis.call('get', KEYS[1])", 1, "k"),
                  ("EVAL", "local t = 0; for i = 1, 100000 do t = t + i end; return t", 0), ("XADD", "x", "1-1", "f", "v"),
                  ("XRANGE", "x", "-", "+"), ("SETRANGE", "r", 10, "x"), ("STRLEN", "r"), ("BOGUS",), ("GET",),
                  ("EXPIRE", "k", 100), ("PERSIST", "k"), ("DBSIZE",), ("SELECT", 3), ("DBSIZE",), ("SELECT", 0),
                  ("CONFIG", "GET", "maxmemory-policy"), ("DEBUG", "SLEEP", "0.01"), ("FLUSHALL",), ("DBSIZE",)):
        seen.append(call(*words))
    # Inline commands, one byte at a time.
    for byte in b"SET inline yes\r\nGET inline\r\n":
        call.conn.sendall(bytes([byte]))
    seen.append([call.reply(), call.reply()])
    seen.append(shutdown(call, server))
    return seen


@suite.case
def transactions(run):
    server = start(run)
    call, other, seen = Client(run, server.port), Client(run, server.port), []
    for words in (("MULTI",), ("SET", "a", 1), ("INCR", "a"), ("GET", "a"), ("EXEC",), ("MULTI",), ("SET", "a", 9),
                  ("DISCARD",), ("GET", "a"), ("MULTI",), ("BOGUS",), ("EXEC",), ("WATCH", "a")):
        seen.append(call(*words))
    seen.append(other("INCR", "a"))
    for words in (("MULTI",), ("SET", "a", 100), ("EXEC",), ("GET", "a"), ("WATCH", "a"), ("UNWATCH",)):
        seen.append(call(*words))

    def count(client):
        """Optimistic increments: a lost update would show in the sum."""
        done = 0
        while done < 100:
            client("WATCH", "sum")
            value = int(client("GET", "sum") or 0)
            client("MULTI")
            client("SET", "sum", value + 1)
            done += client("EXEC") is not None

    in_threads([lambda client=Client(run, server.port): count(client) for _ in range(4)])
    seen.append(call("GET", "sum"))
    # One transaction of many commands in one write.
    call.conn.sendall(Client.pack("MULTI") + b"".join(Client.pack("INCR", "many") for _ in range(2000)) +
                      Client.pack("EXEC"))
    for _ in range(2001):
        call.reply()
    seen.append(call.reply()[-1])
    seen.append(shutdown(call, server))
    return seen


@suite.case
def publish_and_subscribe(run):
    server = start(run)
    count, readers = 500, 20
    subscribers = [Client(run, server.port) for _ in range(readers)]
    for number, client in enumerate(subscribers):
        client.send(*(("SUBSCRIBE", "news") if number % 2 else ("PSUBSCRIBE", "n*")))
        client.reply()
    publisher = Client(run, server.port)

    def read_all(client):
        messages = [client.reply()[-1] for _ in range(count)]
        check_equal(messages, [b"message %d " % i + b"x" * (i * 7) for i in range(count)], "messages")
        return len(messages)

    def publish():
        heard = set()
        for i in range(count):
            publisher.send("PUBLISH", "news", b"message %d " % i + b"x" * (i * 7))
        for i in range(count):
            heard.add(publisher.reply())
        return sorted(heard)

    results = in_threads([publish] + [lambda client=client: read_all(client) for client in subscribers])
    subscribers[0].send("PUNSUBSCRIBE")
    results.append(subscribers[0].reply())
    subscribers[1].close()
    wait_until(lambda: publisher("PUBSUB", "NUMSUB", "news")[1] == readers // 2 - 1, "the closed one is forgotten")
    results.append(publisher("PUBLISH", "news", "last"))
    shutdown(publisher, server)
    results.append([check_ended(client.conn) for client in subscribers[2:]])
    return results


@suite.case
def blocking_pops(run):
    """Time-outs are never early; a push wakes exactly one, the longest waiting."""
    server = start(run)
    call, seen = Client(run, server.port), []
    began = time.monotonic()
    seen.append(call("BLPOP", "none", "0.25"))
    took = time.monotonic() - began
    check(0.249 <= took < 10, "a time-out of 0.25 s took %.3f s", took)
    waiters = []
    for number in range(10):
        client = Client(run, server.port)
        client.send("BLPOP", "queue", 0)
        wait_until(lambda number=number: int(call.info("blocked_clients")) == number + 1, "the client is blocked")
        waiters.append(client)
    for number, client in enumerate(waiters):
        call("RPUSH", "queue", number)
        seen.append(client.reply())
    # Two pops of one push, lists of several keys, and a client that goes while blocked.
    left, right, gone = (Client(run, server.port) for _ in range(3))
    gone.send("BLPOP", "late", 0)
    wait_until(lambda: int(call.info("blocked_clients")) == 1, "one client is blocked")
    gone.close()
    wait_until(lambda: int(call.info("blocked_clients")) == 0, "it is forgotten")
    left.send("BLPOP", "other", "late", 0)
    wait_until(lambda: int(call.info("blocked_clients")) == 1, "one client is blocked")
    right.send("BRPOP", "late", 0)
    wait_until(lambda: int(call.info("blocked_clients")) == 2, "two clients are blocked")
    call("RPUSH", "late", "first", "second")
    seen += [left.reply(), right.reply()]
    # Many time-outs at once.
    sleepers = [Client(run, server.port) for _ in range(30)]
    for number, client in enumerate(sleepers):
        client.send("BLPOP", "nothing", "%.2f" % (0.01 * (number + 1)))
    seen += [client.reply() for client in sleepers]
    # A stream's blocking read.
    left.send("XREAD", "BLOCK", 0, "STREAMS", "stream", "$")
    wait_until(lambda: int(call.info("blocked_clients")) == 1, "one client is blocked")
    call("XADD", "stream", "5-5", "f", "v")
    seen.append(left.reply())
    seen.append(shutdown(call, server))
    return seen


@suite.case
def client_kill(run):
    """The killed client's FIN comes at once; so does the FIN of all when a type is killed."""
    server = start(run)
    call, seen = Client(run, server.port), []
    victims = [Client(run, server.port) for _ in range(40)]
    numbers = [client("CLIENT", "ID") for client in victims]
    for client, number in zip(victims[:20], numbers):
        seen.append(call("CLIENT", "KILL", "ID", number))
        seen.append(check_ended(client.conn))
    victims[20].send("BLPOP", "never", 0)
    wait_until(lambda: call.info("blocked_clients") == "1", "one client is blocked")
    victims[21]("SUBSCRIBE", "c")
    seen.append(call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
    seen.append([check_ended(client.conn) for client in victims[22:]] + [check_ended(victims[20].conn)])
    seen.append(call("CLIENT", "KILL", "TYPE", "pubsub"))
    seen.append(check_ended(victims[21].conn))
    # Killing oneself: the reply comes, then the end.
    suicide = Client(run, server.port)
    seen.append(suicide("CLIENT", "KILL", "ID", suicide("CLIENT", "ID"), "SKIPME", "no"))
    seen.append(check_ended(suicide.conn))
    seen.append(call.info("connected_clients"))
    seen.append(shutdown(call, server))
    return seen


@suite.case
def save_in_a_child_during_traffic(run):
    """BGSAVE and BGREWRITEAOF fork: the child has the parent's ring in its memory
    and must leave it alone; the parent's traffic goes on and loses nothing."""
    server = start(run, "--appendonly", "yes", "--appendfsync", "no")
    call = Client(run, server.port)
    pipeline = b"".join(Client.pack("SET", "key%d" % i, "x" * 500) for i in range(5000))
    in_threads([lambda: call.conn.sendall(pipeline), lambda: [call.reply() for _ in range(5000)]])
    stop, written = threading.Event(), {}

    def traffic(number):
        client, turn = Client(run, server.port), 0
        while not stop.is_set():
            check_equal(client("SET", "t%d" % number, turn), "OK", "reply")
            check_equal(client("GET", "t%d" % number), b"%d" % turn, "value")
            turn += 1
        written[number] = turn - 1
        check(turn > 1, "no traffic")

    def save():
        try:
            for _ in range(3):
                for command, busy in (("BGSAVE", "rdb_bgsave_in_progress"), ("BGREWRITEAOF", "aof_rewrite_in_progress")):
                    reply = call(command)
                    check(not isinstance(reply, Error), "%s: %s", command, reply)
                    wait_until(lambda: call.info(busy) == "0" and call.info("aof_rewrite_scheduled") == "0",
                               "the child of %s has ended" % command)
            return [call.info("rdb_last_bgsave_status"), call.info("aof_last_bgrewrite_status")]
        finally:
            stop.set()

    seen = [in_threads([save] + [lambda number=number: traffic(number) for number in range(6)])[0]]
    call.send("SHUTDOWN", "SAVE")
    seen.append(check_ended(call.conn))
    server.finish(0)
    # What was written is there in the next life, read from the file.
    again = start(run, "--appendonly", "yes", directory=server.directory)
    call = Client(run, again.port)
    wait_until(lambda: call.info("loading") == "0", "the data are loaded")
    seen.append([call("DBSIZE"), call("GET", "key4999")])
    for number, turn in written.items():
        check_equal(call("GET", "t%d" % number), b"%d" % turn, "the last value of client %d" % number)
    seen.append(shutdown(call, again))
    return seen


@suite.case
def replication(run):
    """A replica connects out, is fed by a forked child, then follows; it survives the loss of its link."""
    first = start(run, "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", 0)
    call = Client(run, first.port)
    for i in range(2000):
        call.send("SET", "before%d" % i, i)
    for _ in range(2000):
        call.reply()
    second = start(run, "--replicaof", "%s %d" % (suite.address, first.port))
    replica = Client(run, second.port)
    wait_until(lambda: replica.info("master_link_status") == "up", "the replica has synchronised")
    for i in range(1000):
        call.send("SET", "after%d" % i, i)
    for _ in range(1000):
        call.reply()
    seen = [call("WAIT", 1, 20000), replica("DBSIZE"), replica("GET", "after999"), str(replica("SET", "x", 1))]
    call("CLIENT", "KILL", "TYPE", "replica")
    call("SET", "later", 1)
    wait_until(lambda: replica("GET", "later") == b"1", "the replica has come back")
    seen.append(shutdown(call, first))
    wait_until(lambda: replica.info("master_link_status") == "down", "the replica has seen the end")
    seen.append(replica("REPLICAOF", "NO", "ONE"))
    seen.append(shutdown(replica, second))
    return seen


@suite.case
def large_replies_to_slow_readers(run):
    """The output buffer drains by write events while others are served."""
    server = start(run)
    call = Client(run, server.port)
    value = random.Random(suite.seed).randbytes(1 << 20)
    check_equal(call("SET", "big", value), "OK", "reply")
    slow = [Client(run, server.port) for _ in range(4)]
    for client in slow:
        client.conn.sendall(Client.pack("GET", "big") * 20)
    for _ in range(200):
        check_equal(call("PING"), "PONG", "reply")

    def drain(client):
        for _ in range(20):
            check(client.reply() == value, "the value differs")
        return client("PING")

    seen = in_threads([lambda client=client: drain(client) for client in slow])
    # One that never reads and goes away: nothing may stay.
    gone = Client(run, server.port)
    gone.conn.sendall(Client.pack("GET", "big") * 50)
    select.select([gone.conn], [], [], 10)
    gone.close()
    wait_until(lambda: call.info("connected_clients") == "5", "the one that went away is forgotten")
    seen.append(shutdown(call, server))
    return seen


def benchmark(run, server, *options, shim=False):
    """The names of the tests that redis-benchmark finished."""
    out = run.call(["redis-benchmark", "-h", suite.address, "-p", server.port, "--csv"] + list(options), shim=shim,
                   timeout=120)
    rows = [line.split(",") for line in out.splitlines() if line.startswith('"') and not line.startswith('"test"')]
    for row in rows:
        check(float(row[1].strip('"')) > 0, "no rate: %s", row)
    return [row[0].strip('"') for row in rows]


@suite.case(timeout=120)
def benchmark_of_all_tests(run):
    """redis-benchmark is an epoll program too: once as it is, once with its own polls on a ring."""
    server = start(run)
    seen = [benchmark(run, server, "-n", 1000, "-c", 50)]
    seen.append(benchmark(run, server, "-n", 1000, "-c", 20, shim=True))
    seen.append(benchmark(run, server, "-n", 10000, "-c", 100, "-P", 16, "-t", "set,get,incr,lpush,mset", shim=True))
    seen.append(benchmark(run, server, "-n", 4000, "-c", 50, "--threads", 2, "-t", "set,get", shim=True))
    seen.append(benchmark(run, server, "-n", 500, "-c", 200, "-k", 0, "-t", "set,get"))
    seen.append(benchmark(run, server, "-n", 500, "-c", 10, "-d", 100000, "-t", "set,get", shim=True))
    check(len(seen[0]) >= 18, "only these tests ran: %s", seen[0])
    seen.append(shutdown(Client(run, server.port), server))
    return seen


@suite.case
def io_threads(run):
    """Reads and writes by other threads than the loop's."""
    server = start(run, "--io-threads", 3, "--io-threads-do-reads", "yes")
    seen = [benchmark(run, server, "-n", 5000, "-c", 50, "-t", "set,get,incr", "-P", 4)]
    clients = [Client(run, server.port) for _ in range(50)]

    def drive(part):
        for turn in range(30):
            for number, client in part:
                client.send("SET", "c%d" % number, turn)
                client.send("GET", "c%d" % number)
            for _, client in part:
                check_equal([client.reply(), client.reply()], ["OK", b"%d" % turn], "replies")

    numbered = list(enumerate(clients))
    in_threads([lambda part=numbered[i::5]: drive(part) for i in range(5)])
    seen.append(shutdown(clients[0], server))
    seen.append([check_ended(client.conn) for client in clients[1:]])
    return seen


@suite.case
def command_line_client(run):
    """redis-cli, scripted: commands from its standard input, --pipe, over an AF_UNIX socket."""
    path = os.path.join(run.directory, "socket")
    server = start(run, "--unixsocket", path)
    lines = "SET a 1\nINCR a\nGET a\nLPUSH l x y z\nLRANGE l 0 -1\nMULTI\nINCR a\nINCR a\nEXEC\nBOGUS\n"
    with open(run.file("commands", lines), "rb") as script:
        seen = [run.call(["redis-cli", "-s", path], stdin=script)]
    data = b"".join(Client.pack("SET", "mass%d" % i, "v" * 100) for i in range(20000))
    with open(run.file("mass", data), "rb") as script:
        out = run.call(["redis-cli", "-h", suite.address, "-p", server.port, "--pipe"], stdin=script)
    seen.append(out.splitlines()[-1])
    call = Client(run, path)
    seen.append(call("DBSIZE"))
    seen.append(shutdown(call, server))
    return seen


@suite.case
def shutdown_ends_all(run):
    seen = []
    for how in ("SHUTDOWN", signal.SIGTERM, signal.SIGINT):
        server = start(run, expect=how == "SHUTDOWN")
        clients = [Client(run, server.port) for _ in range(20)]
        for client in clients:
            check_equal(client("PING"), "PONG", "reply")
        clients[0].send("BLPOP", "never", 0)
        if how == "SHUTDOWN":
            clients[1].send(how)
            server.finish(0)
        else:
            server.end(how, 0)
        run.check_port_is_free(server.port, reuse=True)
        seen.append([check_ended(client.conn) for client in clients])
    return seen


@suite.case
def killed_and_bound_again(run):
    seen = []
    for conns in (0, 30):
        server = start(run, expect=False)
        clients = [Client(run, server.port) for _ in range(conns)]
        for client in clients:
            check_equal(client("PING"), "PONG", "reply")
        run.kill_and_rebind(server, server.port, [client.conn for client in clients])
        again = run.start(["redis-server", "--bind", suite.address, "--port", server.port, "--save", "",
                           "--dir", run.directory])
        run.wait_for_listener(again, server.port)
        seen.append(Client(run, server.port)("PING"))
        again.end(signal.SIGTERM, 0)
    return seen


@suite.case
def refused_and_reset_clients(run):
    """More clients than are allowed; clients that reset, or half-close."""
    server = start(run, "--maxclients", 30)
    clients = [Client(run, server.port) for _ in range(30)]
    for client in clients:
        check_equal(client("PING"), "PONG", "reply")
    extra = Client(run, server.port)
    seen = [extra.reply(), check_ended(extra.conn)]
    for client in clients[:10]:
        client.conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    wait_until(lambda: clients[10].info("connected_clients") == "20", "the reset ones are forgotten")
    for client in clients[11:20]:
        client.send("SET", "half", "x")
        client.conn.shutdown(socket.SHUT_WR)
        seen.append([client.reply(), check_ended(client.conn)])
    wait_until(lambda: clients[10].info("connected_clients") == "11", "the half-closed ones are forgotten")
    seen.append(shutdown(clients[10], server))
    return seen


if __name__ == "__main__":
    suite.main()
