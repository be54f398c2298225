#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""asyncio programs on uvloop, Debian's python3-uvloop on the system's libuv (see uvloop_cases.py)."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import json
import os
import signal
import subprocess

from harness import HERE, Skipped, Suite, check, read_exactly, wait_until

suite = Suite("uvloop", needs=["openssl"], library="libuv")
PYTHON = "/usr/bin/python3"


def start(run, name, directory):
    if subprocess.run([PYTHON, "-c", "import uvloop, asyncio; asyncio.Runner"], stderr=subprocess.DEVNULL, check=False).returncode:
        raise Skipped("there is no uvloop (Debian: python3-uvloop) for a python with asyncio.Runner")
    process = run.start([PYTHON, "-W", "ignore", os.path.join(HERE, "uvloop_cases.py"), name, suite.address, directory],
                        env={"PYTHONDONTWRITEBYTECODE": "1"}, name="python")
    if name != "subprocesses": # they have nothing but pipes, which are kernel epoll's
        run.expect_ring(process)
    return process


def add(name, **options):
    def body(run):
        return json.loads(start(run, name, run.directory).finish(0, 45))
    body.__name__ = name
    suite.case(body, **options)


for each in ("streams", "unix", "tls", "datagrams", "subprocesses", "plain_sockets", "loop_itself"):
    add(each)
add("paused_reads", but=("ring",))


@suite.case
def served_from_outside(run):
    seen = []
    for number, count in ((signal.SIGTERM, 0), (signal.SIGTERM, 10), (signal.SIGKILL, 0), (signal.SIGKILL, 10)):
        directory = os.path.join(run.directory, "%s-%d" % (number.name, count))
        os.makedirs(directory)
        process, path = start(run, "serve", directory), os.path.join(directory, "port")
        wait_until(lambda path=path, process=process: os.path.exists(path) or not process.alive(), "it serves")
        check(process.alive(), "it ended: %s", process.errors()[-1000:])
        with open(path) as file:
            port = int(file.read())
        conns = [run.connect(port) for _ in range(count)]
        for conn in conns:
            conn.sendall(b"hello")
            check(read_exactly(conn, 5) == b"hello", "no echo")
        seen += run.end_or_kill(process, number, port, conns)
    return seen


if __name__ == "__main__":
    suite.main()
