#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A memcached client for scripts/demo.sh: real sockets, real commands.

load    Opens many connections. In each round it writes one request on every
        connection before it reads the first reply, so that the server finds many
        of them ready at once, as a busy server does. Warms up, prints "ready",
        waits for a line on its standard input (the caller attaches its counter
        meanwhile), does the measured rounds, and prints "done N".
verify  Many connections from several threads, each with keys of its own: set,
        get, append, incr, delete, values up to 900 kB, pipelined gets, and
        connections that come and go. Prints "verified N".

Every reply is compared with what it has to be; a wrong one ends with exit 1.
"""
import argparse
import socket
import sys
import threading

TIMEOUT_S = 30


class Wrong(Exception):
    pass


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)

    def expect(self, wanted):
        while len(self.buffer) < len(wanted):
            part = self.socket.recv(262144)
            if not part:
                raise Wrong(f"the server closed; wanted {wanted[:60]!r}")
            self.buffer += part
        if not self.buffer.startswith(wanted):
            raise Wrong(f"wanted {wanted[:60]!r}, got {self.buffer[:60]!r}")
        self.buffer = self.buffer[len(wanted):]

    def ask(self, request, reply):
        self.send(request)
        self.expect(reply)

    def close(self):
        self.socket.close()


def set_request(key, value):
    return b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value)


def get_reply(key, value):
    return b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)


def load(arguments):
    value = b"v" * arguments.value_size
    connections = [Connection(arguments.port) for _ in range(arguments.connections)]
    keys = [b"demo-%d" % index for index in range(len(connections))]
    for connection, key in zip(connections, keys):
        connection.ask(set_request(key, value), b"STORED\r\n")

    def one_round(number):
        # One set for nine gets.
        is_set = number % 10 == 9
        for connection, key in zip(connections, keys):
            connection.send(set_request(key, value) if is_set else b"get %s\r\n" % key)
        for connection, key in zip(connections, keys):
            connection.expect(b"STORED\r\n" if is_set else get_reply(key, value))

    for number in range(20):
        one_round(number)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(arguments.rounds):
        one_round(number)
    print(f"done {arguments.rounds * len(connections)}", flush=True)
    sys.stdin.readline()
    for connection in connections:
        connection.close()


def verify_one(port, name, rounds):
    """One thread's part; returns the number of replies it has checked."""
    checked = 0
    connections = [Connection(port) for _ in range(25)]
    for number in range(rounds):
        for index, connection in enumerate(connections):
            key = b"%s-%d" % (name, index)
            small = b"%d:%d" % (number, index) * (1 + number % 50)
            connection.ask(set_request(key, small), b"STORED\r\n")
            connection.send(b"get %s\r\n" % key * 5)
            for _ in range(5):
                connection.expect(get_reply(key, small))
            connection.ask(b"append %s 0 0 3\r\nend\r\n" % key, b"STORED\r\n")
            connection.ask(b"get %s\r\n" % key, get_reply(key, small + b"end"))
            connection.ask(set_request(key, b"41"), b"STORED\r\n")
            connection.ask(b"incr %s 1\r\n" % key, b"42\r\n")
            connection.ask(b"delete %s\r\n" % key, b"DELETED\r\n")
            connection.ask(b"get %s\r\n" % key, b"END\r\n")
            checked += 12
        big = bytes([65 + number % 26]) * (900_000 - number)
        key = name + b"-big"
        connections[0].ask(set_request(key, big), b"STORED\r\n")
        connections[1].ask(b"get %s\r\n" % key, get_reply(key, big))
        checked += 2
        # One goes, one comes; the one that goes says so in either way.
        leaver = connections.pop(0)
        if number % 2:
            leaver.send(b"quit\r\n")
            if leaver.socket.recv(1) != b"":
                raise Wrong("quit did not close")
            checked += 1
        leaver.close()
        connections.append(Connection(port))
    for connection in connections:
        connection.close()
    return checked


def verify(arguments):
    results = []

    def run(name):
        try:
            results.append(verify_one(arguments.port, name, arguments.rounds))
        except (OSError, Wrong) as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(b"t%d" % index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    print(f"verified {sum(results)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["load", "verify"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--value-size", type=int, default=64)
    arguments = parser.parse_args()
    try:
        (load if arguments.mode == "load" else verify)(arguments)
    except (OSError, Wrong) as error:
        print(f"demo_client.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
