#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""System calls per request of redis and memcached, profile throughput, 64 connections.

The client writes on all connections before it reads. It shares one processor with the
server, which does not preempt it (SCHED_BATCH), so that a turn of the server finds all
the requests. strace counts every call of every thread. On the ring there must be at
most one for ten requests; on epoll there are more than one for each.
"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import re
import signal

from harness import Suite, Skipped, check, find_program, read_exactly, wait_until

suite = Suite("calls", needs=["strace"], profile="throughput")
CONNECTIONS, ROUNDS = 64, 100


def server_of(run, name, argv, port):
    if not find_program(name):
        raise Skipped("%s is not installed" % name)
    server = run.start(argv)
    run.wait_for_listener(server, port)
    run.expect_ring(server)
    return server


def threads_of(pid):
    return [int(task) for task in os.listdir("/proc/%d/task" % pid)]


def calls_per_request(run, server, port, request, reply):
    conns = [run.connect(port) for _ in range(CONNECTIONS)]
    cpu = {max(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)

    def rounds(count):
        for _ in range(count):
            for conn in conns:
                conn.sendall(request)
            for conn in conns:
                check(read_exactly(conn, len(reply)) == reply, "another reply")

    try:
        for thread in threads_of(server.pid):
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
            os.sched_setaffinity(thread, cpu)
        os.sched_setaffinity(0, cpu)
        rounds(30)
        tracer = run.start(["strace", "-f", "-c", "-U", "calls,name", "-o", os.path.join(run.directory, "calls"),
                            "-p", server.pid], shim=False)
        wait_until(lambda: all(traced(server.pid, thread) for thread in threads_of(server.pid)) or not tracer.alive(),
                   "strace is attached")
        if not tracer.alive():
            raise Skipped("strace: %s" % tracer.errors().strip())
        rounds(ROUNDS)
        tracer.end(signal.SIGINT)
    finally:
        os.sched_setaffinity(0, before)
    for conn in conns:
        conn.close()
    with open(os.path.join(run.directory, "calls")) as file:
        table = file.read()
    total = sum(int(line.split()[0]) for line in table.splitlines() if re.match(r"\s*\d+ +[a-z]\w*$", line)
                and not line.endswith("total"))
    check(total > 0, "strace counted nothing:\n%s", table)
    result = total / (CONNECTIONS * ROUNDS)
    print("  %s, %s: %.3f system calls per request" % (os.path.basename(server.name), run.mode, result))
    if run.mode == "epoll":
        check(result > 1, "epoll made %.3f calls per request:\n%s", result, table)
    elif suite.profile == "throughput" and not os.environ.get("RINGPOLL_MASK"):
        check(result <= 0.1, "the ring made %.3f calls per request:\n%s", result, table)


def traced(pid, thread):
    with open("/proc/%d/task/%d/status" % (pid, thread)) as file:
        return not re.search(r"^TracerPid:\s*0$", file.read(), re.M)


@suite.case
def redis(run):
    port = run.free_port()
    server = server_of(run, "redis-server",
                       ["redis-server", "--bind", suite.address, "--port", port, "--dir", run.directory, "--save", "",
                        "--protected-mode", "no", "--daemonize", "no"], port)
    conn = run.connect(port)
    conn.sendall(b"SET key value\r\n")
    check(read_exactly(conn, 5) == b"+OK\r\n", "SET")
    calls_per_request(run, server, port, b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n", b"$5\r\nvalue\r\n")
    server.end(signal.SIGTERM, 0)


@suite.case
def memcached(run):
    port = run.free_port()
    server = server_of(run, "memcached",
                       ["memcached", "-l", suite.address, "-p", port, "-U", 0, "-t", 1, "-u", "root"], port)
    conn = run.connect(port)
    conn.sendall(b"set key 0 0 5\r\nvalue\r\n")
    check(read_exactly(conn, 8) == b"STORED\r\n", "set")
    calls_per_request(run, server, port, b"get key\r\n", b"VALUE key 0 5\r\nvalue\r\nEND\r\n")
    server.end(signal.SIGTERM, 0)


if __name__ == "__main__":
    suite.main()
