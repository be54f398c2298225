#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""tor, with its network switched off: its start, its control port, its end; with and
without its seccomp sandbox, which forbids io_uring: there the base goes on by epoll."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import re
import signal

from harness import Suite, check, check_ended, check_equal, in_threads, wait_until

suite = Suite("tor", needs=["tor"], library="libevent", plain=True)


class Tor:
    def __init__(self, run, *options, expect=True):
        self.run = run
        self.data = os.path.join(run.directory, "data")
        if not os.path.isdir(self.data):
            os.mkdir(self.data, 0o700)
        self.control, self.socks = run.free_port(), run.free_port()
        self.torrc = run.file("torrc", "DataDirectory %s\nControlPort %s:%d\nSocksPort %s:%d\nCookieAuthentication 1\n"
                              "DisableNetwork 1\nLog info stdout\n%s\n" %
                              (self.data, suite.address, self.control, suite.address, self.socks, "\n".join(options)))
        self.process = run.start(["tor", "-f", self.torrc, "--defaults-torrc", "/nonexistent",
                                  "--ignore-missing-torrc"])
        run.wait_for_listener(self.process, self.control)
        if expect:
            run.expect_ring(self.process)

    def wait_for_log(self, text, times=1):
        wait_until(lambda: len(re.findall(text, self.process.output())) >= times, "%r in tor's log" % text)

    def warnings(self):
        return [line for line in self.process.output().splitlines() if "[warn]" in line or "[err]" in line]


class Control:
    """A client of the control protocol, in lock-step."""

    def __init__(self, tor, authenticate=True):
        self.conn = tor.run.connect(tor.control)
        self.file = self.conn.makefile("rb")
        if authenticate:
            cookie = os.path.join(tor.data, "control_auth_cookie")
            wait_until(lambda: os.path.exists(cookie) and os.path.getsize(cookie) == 32, "the cookie is written")
            with open(cookie, "rb") as file:
                check_equal(self.call("AUTHENTICATE " + file.read().hex()), ["250 OK"], "the answer")

    def call(self, command):
        self.conn.sendall(command.encode() + b"\r\n")
        return self.reply()

    def reply(self):
        lines, inside = [], False
        while True:
            line = self.file.readline()
            check(line, "tor closed the control connection after %r", lines)
            text = line.decode().rstrip("\r\n")
            lines.append(text)
            if inside:
                inside = text != "."
            elif text[3:4] == "+":
                inside = True
            elif text[3:4] == " ":
                return lines


@suite.case
def starts_and_answers(run):
    tor, seen = Tor(run), []
    control = Control(tor)
    for question in ("GETINFO version", "GETINFO status/bootstrap-phase", "GETCONF DisableNetwork SafeLogging",
                     "GETINFO config-file", "GETINFO events/names", "GETINFO process/pid", "GETINFO nothing",
                     "GETINFO net/listeners/control", "bogus", "PROTOCOLINFO 1", "GETINFO info/names",
                     "GETINFO config/names", "GETINFO signal/names"):
        answer = control.call(question)
        for own in (str(tor.process.pid), run.directory, str(tor.control)):
            answer = [line.replace(own, "*") for line in answer]
        seen.append(answer)
    seen.append(control.call("SETCONF Nickname=ringpoll ContactInfo=nobody"))
    seen.append(control.call("GETCONF Nickname ContactInfo"))
    seen.append(control.call("SETCONF Nickname=not-a-nickname"))
    seen.append(control.call("QUIT"))
    seen.append(check_ended(control.conn))
    # A clear port that nobody has authenticated at.
    stranger = Control(tor, authenticate=False)
    seen.append(stranger.call("GETINFO version"))
    seen.append(check_ended(stranger.conn))
    tor.process.end(signal.SIGTERM, 0)
    return seen


@suite.case
def many_controllers_at_once(run):
    tor = Tor(run)

    def one(number):
        control = Control(tor)
        names = control.call("GETINFO config/names")
        for turn in range(50):
            check_equal(control.call("GETINFO config/names"), names, "the same answer again")
            if turn % 10 == number % 10:
                check_equal(control.call("QUIT"), ["250 closing connection"], "the answer")
                check_ended(control.conn)
                control = Control(tor)
        return len(names)

    sizes = in_threads([lambda number=number: one(number) for number in range(20)])
    tor.process.end(signal.SIGTERM, 0)
    return sizes


@suite.case
def signals_and_timers(run):
    """SIGHUP reloads, SIGUSR1 dumps, its timers fire; SIGNAL commands do the same."""
    tor, seen = Tor(run), []
    control = Control(tor)
    control.call("SETEVENTS SIGNAL NOTICE CONF_CHANGED")
    for number, word in ((signal.SIGHUP, "RELOAD"), (signal.SIGUSR1, "DUMP"), (signal.SIGUSR2, "DEBUG")):
        tor.process.send_signal(number)
        while True:
            line = control.reply()[-1]
            if line.startswith("650 SIGNAL"):
                seen.append(line)
                check_equal(line, "650 SIGNAL " + word, "the event")
                break
    control.call("SETEVENTS")
    control.call("SETCONF Log=\"notice stdout\"")
    for word in ("RELOAD", "CLEARDNSCACHE", "HEARTBEAT"):
        seen.append([line for line in control.call("SIGNAL " + word) if line.startswith("250")])
    run.look(tor.process.pid)
    seen.append(control.call("SIGNAL SHUTDOWN"))
    tor.process.wait()
    seen.append(tor.process.popen.returncode)
    return seen


@suite.case
def socks_port_is_opened_and_closed(run):
    """With the network on, listeners come and go; nobody here can be reached by it."""
    tor, seen = Tor(run), []
    control = Control(tor)
    seen.append(run.is_tcp_listener(tor.socks))
    seen.append(control.call("SETCONF DisableNetwork=0"))
    run.wait_for_listener(tor.process, tor.socks)
    client = run.connect(tor.socks)
    client.sendall(b"\x05\x01\x00")
    seen.append(client.recv(2))
    plain = run.connect(tor.socks)
    plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while not answer.startswith(b"HTTP/1.0 501"):
        part = plain.recv(65536)
        check(part, "an end after %r", answer)
        answer += part
    check_ended(plain)
    seen.append(control.call("SETCONF DisableNetwork=1"))
    wait_until(lambda: not run.is_tcp_listener(tor.socks), "the listener is gone")
    tor.process.end(signal.SIGTERM, 0)
    run.check_port_is_free(tor.control, reuse=True)
    return seen


@suite.case
def in_its_sandbox(run):
    """Sandbox 1: a seccomp filter that knows no io_uring, installed after the base was made."""
    tor, seen = Tor(run, "Sandbox 1", expect=False), []
    control = Control(tor)
    seen.append(control.call("GETCONF Sandbox"))
    for _ in range(20):
        seen.append(control.call("GETINFO status/bootstrap-phase"))
    with open("/proc/%d/status" % tor.process.pid) as file:
        seen.append(re.search(r"Seccomp:\s*(\d)", file.read()).group(1))
    others = [Control(tor) for _ in range(8)]
    for other in others:
        seen.append(other.call("GETINFO version"))
        other.conn.close()
    control.call("SETEVENTS SIGNAL")
    tor.process.send_signal(signal.SIGUSR1)
    seen.append(control.reply())
    # By a command: a second signal right after the first one is lost here now and then, on epoll, too.
    run.look(tor.process.pid)
    seen.append(control.call("SIGNAL SHUTDOWN")[0])
    tor.process.wait()
    seen.append(tor.process.popen.returncode)
    seen.append([line.split("[", 1)[1] for line in tor.warnings()])
    return seen


if __name__ == "__main__":
    suite.main()
