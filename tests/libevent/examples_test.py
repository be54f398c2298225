#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""examples_test.py PREFIX: the examples of examples/libevent build by pkg-config against
what was installed there, and do their work, on the ring and on libevent's own epoll.

It is no part of `make check`, which installs nothing; scripts/test.sh runs it."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
PREFIX = os.path.abspath(sys.argv[1])
ADDRESS = "127.0.13.%d" % (1 + os.getpid() % 250)
ENV = {key: value for key, value in os.environ.items() if not key.startswith(("RINGPOLL", "EVENT_", "LD_"))}
ENV.update(LD_LIBRARY_PATH=PREFIX + "/lib", PKG_CONFIG_PATH=PREFIX + "/lib/pkgconfig")


def free_port():
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


class Program:
    """One of the examples; its first line says where it listens and by which method."""

    def __init__(self, name, *words, method):
        env = dict(ENV, **({} if method == "io_uring" else {"EVENT_NOIO_URING": "1"}))
        self.process = subprocess.Popen(["./" + name] + [str(word) for word in words], env=env, stdout=subprocess.PIPE,
                                        text=True)
        line = self.process.stdout.readline()
        assert line.endswith("by %s\n" % method), "%s said: %r" % (name, line)
        self.name, self.method = name, method

    def end(self):
        done = subprocess.run([PREFIX + "/bin/ringpoll", "stat", "--json", str(self.process.pid)], env=ENV,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        seen = json.loads(done.stdout)["processes"] if done.returncode == 0 else []
        enters = sum(each["counters"]["enters"] for each in seen)
        assert (enters > 0) == (self.method == "io_uring"), "%s: %d enters" % (self.name, enters)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, "%s ended with %d" % (self.name, self.process.returncode)
        self.process.stdout.close()


def connect(port):
    conn = socket.create_connection((ADDRESS, port), 30)
    conn.settimeout(30)
    return conn


def echoes(port, seed):
    """Pieces of all sizes there and back, then an end that comes back after the last byte."""
    generator = random.Random(seed)
    with connect(port) as conn:
        for _ in range(30):
            data = generator.randbytes(generator.choice((1, 100, 5000, 70000)))
            conn.sendall(data)
            assert read(conn, len(data)) == data
        data = generator.randbytes(4 << 20)
        writer = threading.Thread(target=lambda: (conn.sendall(data), conn.shutdown(socket.SHUT_WR)))
        writer.start()
        assert read(conn, len(data)) == data
        assert conn.recv(1) == b""
        writer.join()


def read(conn, count):
    got = bytearray()
    while len(got) < count:
        part = conn.recv(min(count - len(got), 1 << 16))
        assert part, "an end after %d of %d bytes" % (len(got), count)
        got += part
    return bytes(got)


def in_threads(count, job):
    errors = []

    def work(number):
        try:
            job(number)
        except BaseException as error:  # pylint: disable=broad-except
            errors.append(error)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run_echo_and_proxy(method):
    port, front = free_port(), free_port()
    echo = Program("echo", "%s:%d" % (ADDRESS, port), method=method)
    proxy = Program("proxy", "%s:%d" % (ADDRESS, front), "%s:%d" % (ADDRESS, port), method=method)
    in_threads(8, lambda number: echoes(port, number))
    in_threads(8, lambda number: echoes(front, number))
    echo.end()
    with connect(front) as conn:
        try:
            assert conn.recv(1) == b"", "there is nobody behind it"
        except ConnectionResetError:
            pass
    proxy.end()


def run_http(method):
    port = free_port()
    server = Program("http", "%s:%d" % (ADDRESS, port), method=method)

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
    server.end()


def main():
    directory = tempfile.mkdtemp(prefix="ringpoll-examples-")
    source = os.path.join(HERE, "..", "..", "examples", "libevent")
    try:
        for name in os.listdir(source):
            if name.endswith(".c") or name == "Makefile":
                shutil.copy(os.path.join(source, name), directory)
        os.chdir(directory)
        subprocess.run(["make", "-s", "CFLAGS=-O2 -Wall -Wextra -Werror"], env=ENV, check=True)
        for method in ("io_uring", "epoll"):
            run_echo_and_proxy(method)
            run_http(method)
            print("echo, proxy and http on %s: ok" % method)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


main()
