#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Starts `shout`, talks to it on 32 connections, one of which reads late, and ends it.

usage: client.py PROGRAM [on-a-ring|on-epoll]

With the second word: fails where the program's epoll was not served so.
"""
import os
import signal
import socket
import subprocess
import sys

reader, writer = os.pipe()
environment = dict(os.environ, RINGPOLL_STATS=str(writer))
program = subprocess.Popen([sys.argv[1], "0"], stdout=subprocess.PIPE, env=environment, pass_fds=[writer])
os.close(writer)
try:
    port = int(program.stdout.readline())
    connections = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(32)]
    for turn in range(50):
        for number, connection in enumerate(connections):
            connection.sendall(b"%d: this is turn %d\n" % (number, turn))
        for number, connection in enumerate(connections):
            expected = b"%d: THIS IS TURN %d\n" % (number, turn)
            assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
    late = connections[0]
    late.setblocking(False)
    sent = 0
    try:
        while True:
            sent += late.send(b"x" * 65536)
    except BlockingIOError:
        pass
    late.settimeout(20)
    late.shutdown(socket.SHUT_WR)
    got = 0
    while True:
        some = late.recv(65536)
        assert some == b"X" * len(some)
        if not some:
            break
        got += len(some)
    assert got == sent, (got, sent)
finally:
    program.send_signal(signal.SIGTERM)
    status = program.wait(20)
assert status == 0, status
with open(reader, encoding="ascii") as report:
    engines = [line for line in report if line.startswith("engine ")]
assert len(engines) <= 1, engines  # one shim, also where the loader was given two
served = "on-a-ring" if engines == ["engine ring\n"] else "on-epoll"
print(f"{sys.argv[1]}: {sent} bytes and 1600 lines, {served}")
assert len(sys.argv) < 3 or sys.argv[2] == served
