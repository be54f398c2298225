#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""lua-luv, which has a name for nearly every function of libuv: what luv_cases.lua does with them."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import signal

from harness import HERE, Skipped, Suite, check, check_equal, read_exactly

suite = Suite("luv", needs=["lua5.1"], library="libuv")

SERVER = """
local uv = require('luv')
local server = uv.new_tcp()
server:bind(os.getenv('ADDRESS'), tonumber(os.getenv('PORT')))
server:listen(128, function()
  local peer = uv.new_tcp()
  server:accept(peer)
  peer:read_start(function(_, data) if data then peer:write(data) else peer:close() end end)
end)
local datagrams = uv.new_udp()
datagrams:bind(os.getenv('ADDRESS'), tonumber(os.getenv('PORT')))
datagrams:recv_start(function(_, data, from) if data then datagrams:send(data, from.ip, from.port) end end)
uv.new_signal():start('sigterm', function() uv.walk(function(handle) handle:close() end) end)
uv.run()
"""


def start(run, script, env):
    probe = run.start(["lua5.1", "-e", "require('luv')"], shim=False, name="probe")
    if probe.wait():
        raise Skipped("lua5.1 has no luv (Debian: lua-luv)")
    process = run.start(["lua5.1", script], env=dict(env, ADDRESS=suite.address))
    run.expect_ring(process)
    return process


def run_cases(run, env):
    results = os.path.join(run.directory, "results")
    process = start(run, os.path.join(HERE, "luv_cases.lua"), dict(env, RESULTS=results, DIRECTORY=run.directory))
    process.finish(0)
    run.expect_ring(process, cqes=100)
    with open(results) as file:
        return file.read().splitlines()


@suite.case
def functions(run):
    return run_cases(run, {})


@suite.case(but=("ring",))
def stopped_reads(run):
    """What comes behind uv_read_stop() is for the process that the fd is passed to."""
    seen = run_cases(run, {"READS": "1"})
    check_equal(len(seen), 18, "the number of streams")
    return seen


@suite.case
def ended_and_killed(run):
    seen, script = [], run.file("server.lua", SERVER)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for count in (0, 10):
            port = run.free_port()
            process = start(run, script, {"PORT": str(port)})
            run.wait_for_listener(process, port)
            conns = [run.connect(port) for _ in range(count)]
            for conn in conns:
                conn.sendall(b"hello")
                check(read_exactly(conn, 5) == b"hello", "no echo")
            run.ask_datagram(port, b"hello", b"hello")
            seen += run.end_or_kill(process, number, port, conns)
            run.check_datagram_port_is_free(port)
    return seen


if __name__ == "__main__":
    suite.main()
