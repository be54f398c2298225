# SPDX-License-Identifier: MIT
"""What the tests of the examples share: building them against what was installed in PREFIX
(the first argument), starting them, and clients that check what comes back.

The programs that use this are no part of `make check`, which installs nothing; scripts/test.sh
runs them."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
PREFIX = os.path.abspath(sys.argv[1])
ADDRESS = "127.0.13.%d" % (1 + os.getpid() % 250)
ENV = {key: value for key, value in os.environ.items() if not key.startswith(("RINGPOLL", "EVENT_", "UV_", "LD_"))}
ENV.update(LD_LIBRARY_PATH=PREFIX + "/lib", PKG_CONFIG_PATH=PREFIX + "/lib/pkgconfig")


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(type=kind) as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def built(library):
    """A directory with the examples of examples/LIBRARY, built, which is the current one."""
    directory = tempfile.mkdtemp(prefix="ringpoll-examples-")
    source = os.path.join(HERE, "..", "..", "examples", library)
    try:
        for name in os.listdir(source):
            if name.endswith(".c") or name == "Makefile":
                shutil.copy(os.path.join(source, name), directory)
        os.chdir(directory)
        subprocess.run(["make", "-s", "CFLAGS=-O2 -Wall -Wextra -Werror"], env=ENV, check=True)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Program:
    """One of the examples; `said` is its first line, with which it serves."""

    def __init__(self, name, *words, env=()):
        self.name = name
        self.process = subprocess.Popen(["./" + name] + [str(word) for word in words], env=dict(ENV, **dict(env)),
                                        stdout=subprocess.PIPE, text=True)
        self.said = self.process.stdout.readline()

    def end(self, on_ring):
        """`on_ring`: whether it has used one; None: that says nothing of this program."""
        done = subprocess.run([PREFIX + "/bin/ringpoll", "stat", "--json", str(self.process.pid)], env=ENV,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        seen = json.loads(done.stdout)["processes"] if done.returncode == 0 else []
        enters = sum(each["counters"]["enters"] for each in seen)
        if on_ring is not None:
            assert (enters > 0) == on_ring, "%s: %d enters" % (self.name, enters)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, "%s ended with %d" % (self.name, self.process.returncode)
        self.process.stdout.close()


def connect(port):
    conn = socket.create_connection((ADDRESS, port), 30)
    conn.settimeout(30)
    return conn


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
