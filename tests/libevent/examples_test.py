#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""examples_test.py PREFIX: the examples of examples/libevent build by pkg-config against
what was installed there, and do their work, on the ring and on libevent's own epoll."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import http.client
import os
import random

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from examples import ADDRESS, Program, built, connect, echoes, free_port, in_threads


def start(name, *words, method):
    program = Program(name, *words, env={} if method == "io_uring" else {"EVENT_NOIO_URING": "1"})
    assert program.said.endswith("by %s\n" % method), "%s said: %r" % (name, program.said)
    return program


def run_echo_and_proxy(method):
    port, front = free_port(), free_port()
    echo = start("echo", "%s:%d" % (ADDRESS, port), method=method)
    proxy = start("proxy", "%s:%d" % (ADDRESS, front), "%s:%d" % (ADDRESS, port), method=method)
    in_threads(8, lambda number: echoes(port, number))
    in_threads(8, lambda number: echoes(front, number))
    echo.end(method == "io_uring")
    with connect(front) as conn:
        try:
            assert conn.recv(1) == b"", "there is nobody behind it"
        except ConnectionResetError:
            pass
    proxy.end(method == "io_uring")


def run_http(method):
    port = free_port()
    server = start("http", "%s:%d" % (ADDRESS, port), method=method)

    def client(number):
        conn = http.client.HTTPConnection(ADDRESS, port, timeout=30)
        for turn in range(100):
            conn.request("GET", "/hello")
            reply = conn.getresponse()
            assert (reply.status, reply.read()) == (200, b"x" * 1023 + b"\n")
            body = random.Random(number * 1000 + turn).choices(b"abcdefgh", k=turn * 1000)
            conn.request("POST", "/upper", bytes(body))
            reply = conn.getresponse()
            assert (reply.status, reply.read()) == (200, bytes(body).upper())
            if turn % 10 == 9:
                conn.close()
        conn.request("GET", "/nothing")
        assert conn.getresponse().status == 404
        conn.close()
    in_threads(8, client)
    server.end(method == "io_uring")


def main():
    with built("libevent"):
        for method in ("io_uring", "epoll"):
            run_echo_and_proxy(method)
            run_http(method)
            print("echo, proxy and http on %s: ok" % method)


main()
