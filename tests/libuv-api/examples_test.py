#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""examples_test.py PREFIX: the examples of examples/libuv build by pkg-config against
what was installed there, and do their work, on the ring and without one.

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
ADDRESS = "127.0.14.%d" % (1 + os.getpid() % 250)
ENV = {key: value for key, value in os.environ.items() if not key.startswith(("RINGPOLL", "UV_", "LD_"))}
ENV.update(LD_LIBRARY_PATH=PREFIX + "/lib", PKG_CONFIG_PATH=PREFIX + "/lib/pkgconfig")


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(type=kind) as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


class Program:
    """One of the examples; its first line says where it listens."""

    def __init__(self, name, port, *words, ring):
        env = dict(ENV, **({} if ring else {"RINGPOLL_MASK": "no-uring"}))
        self.process = subprocess.Popen(["./" + name, ADDRESS, str(port)] + list(words), env=env,
                                        stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line == "listening on %s:%d\n" % (ADDRESS, port), "%s said: %r" % (name, line)
        self.name, self.ring = name, ring

    def end(self):
        done = subprocess.run([PREFIX + "/bin/ringpoll", "stat", "--json", str(self.process.pid)], env=ENV,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        seen = json.loads(done.stdout)["processes"] if done.returncode == 0 else []
        enters = sum(each["counters"]["enters"] for each in seen)
        if self.name != "udp": # datagram sockets are kernel epoll's
            assert (enters > 0) == self.ring, "%s: %d enters" % (self.name, enters)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, "%s ended with %d" % (self.name, self.process.returncode)
        self.process.stdout.close()


def read(conn, count):
    got = bytearray()
    while len(got) < count:
        part = conn.recv(min(count - len(got), 1 << 16))
        assert part, "an end after %d of %d bytes" % (len(got), count)
        got += part
    return bytes(got)


def echoes(port, seed):
    """Pieces of all sizes there and back, then an end that comes back after the last byte."""
    generator = random.Random(seed)
    with socket.create_connection((ADDRESS, port), 30) as conn:
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


def run_echo(ring):
    port = free_port()
    server = Program("echo", port, ring=ring)
    in_threads(8, lambda number: echoes(port, number))
    server.end()


def run_http(ring, directory):
    port = free_port()
    files = {"small": b"hello\n", "empty": b"", "large": random.Random(1).randbytes((3 << 20) + 17)}
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    server = Program("http", port, directory, ring=ring)

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
        with socket.create_connection((ADDRESS, port), 30) as early: # and does not wait for it all
            early.sendall(b"GET /large HTTP/1.1\r\n\r\n")
            assert read(early, 1000)
        with socket.create_connection((ADDRESS, port), 30) as bad:
            bad.sendall(b"PUT / HTTP/1.1\r\n\r\n")
            assert bad.recv(100).startswith(b"HTTP/1.1 400 ")
    in_threads(6, client)
    server.end()


def run_udp(ring):
    port = free_port(socket.SOCK_DGRAM)
    server = Program("udp", port, ring=ring)

    def client(number):
        with socket.socket(type=socket.SOCK_DGRAM) as conn:
            conn.settimeout(30)
            conn.connect((ADDRESS, port))
            for turn in range(200):
                data = ("message %d of %d" % (turn, number)).encode()
                conn.send(data)
                assert conn.recv(2048) == data.upper()
    in_threads(4, client)
    server.end()


def main():
    directory = tempfile.mkdtemp(prefix="ringpoll-examples-")
    source = os.path.join(HERE, "..", "..", "examples", "libuv")
    try:
        for name in os.listdir(source):
            if name.endswith(".c") or name == "Makefile":
                shutil.copy(os.path.join(source, name), directory)
        os.mkdir(os.path.join(directory, "files"))
        os.chdir(directory)
        subprocess.run(["make", "-s", "CFLAGS=-O2 -Wall -Wextra -Werror"], env=ENV, check=True)
        for ring in (True, False):
            run_echo(ring)
            run_http(ring, os.path.join(directory, "files"))
            run_udp(ring)
            print("echo, http and udp %s: ok" % ("on the ring" if ring else "without one"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


main()
