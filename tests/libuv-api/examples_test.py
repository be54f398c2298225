#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""examples_test.py PREFIX: the examples of examples/libuv build by pkg-config against
what was installed there, and do their work, on the ring and without one."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import http.client
import os
import random
import socket

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from examples import ADDRESS, Program, built, connect, echoes, free_port, in_threads, read


def start(name, port, *words, ring):
    program = Program(name, ADDRESS, port, *words, env={} if ring else {"RINGPOLL_MASK": "no-uring"})
    assert program.said == "listening on %s:%d\n" % (ADDRESS, port), "%s said: %r" % (name, program.said)
    return program


def run_echo(ring):
    port = free_port()
    server = start("echo", port, ring=ring)
    in_threads(8, lambda number: echoes(port, number))
    server.end(ring)


def run_http(ring, directory):
    port = free_port()
    files = {"small": b"hello\n", "empty": b"", "large": random.Random(1).randbytes((3 << 20) + 17)}
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    server = start("http", port, directory, ring=ring)

    def client(number):
        conn = http.client.HTTPConnection(ADDRESS, port, timeout=30)
        generator = random.Random(number)
        for turn in range(60):
            name = generator.choice(list(files) + ["nothing"])
            conn.request("GET", "/" + name)
            reply = conn.getresponse()
            assert reply.status == (200 if name in files else 404)
            assert reply.read() == files.get(name, b""), name
            if turn % 10 == 9:
                conn.close()
        conn.close()
        with connect(port) as early: # and does not wait for it all
            early.sendall(b"GET /large HTTP/1.1\r\n\r\n")
            assert read(early, 1000)
        with connect(port) as bad:
            bad.sendall(b"PUT / HTTP/1.1\r\n\r\n")
            assert bad.recv(100).startswith(b"HTTP/1.1 400 ")
    in_threads(6, client)
    server.end(ring)


def run_udp(ring):
    port = free_port(socket.SOCK_DGRAM)
    server = start("udp", port, ring=ring)

    def client(number):
        with socket.socket(type=socket.SOCK_DGRAM) as conn:
            conn.settimeout(30)
            conn.connect((ADDRESS, port))
            for turn in range(200):
                data = ("message %d of %d" % (turn, number)).encode()
                conn.send(data)
                assert conn.recv(2048) == data.upper()
    in_threads(4, client)
    server.end(None) # datagram sockets are kernel epoll's


def main():
    with built("libuv") as directory:
        files = os.path.join(directory, "files")
        os.mkdir(files)
        for ring in (True, False):
            run_echo(ring)
            run_http(ring, files)
            run_udp(ring)
            print("echo, http and udp %s: ok" % ("on the ring" if ring else "without one"))


main()
