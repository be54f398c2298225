#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""dbus-daemon: clients that call one another over AF_UNIX and TCP, pass descriptors, and are told who is there."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import signal
import socket
import struct

from harness import (Failure, Skipped, Suite, check, check_ended, check_equal, find_program, in_threads, read_until,
                     wait_until)

suite = Suite("dbus", needs=["dbus-daemon"])
BUS = "org.freedesktop.DBus"
CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%(dir)s/bus</listen>
  <listen>tcp:host=%(address)s,bind=%(address)s,port=%(port)d,family=ipv4</listen>
  <auth>EXTERNAL</auth>
  <auth>ANONYMOUS</auth>
  <allow_anonymous/>
  <servicedir>%(dir)s</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    %(policy)s
  </policy>
</busconfig>
"""


def pad(data, to):
    return data + bytes(-len(data) % to)


def text(value):
    return struct.pack("<I", len(value.encode())) + value.encode() + b"\0"


def body_of(signature, values):
    """Strings, 32-bit numbers (also of descriptors) and arrays of bytes are all that is needed here."""
    out, kinds = b"", signature.replace("ay", "A")
    for kind, value in zip(kinds, values):
        out = pad(out, 4)
        if kind == "s":
            out += text(value)
        elif kind == "A":
            out += struct.pack("<I", len(value)) + value
        else:
            out += struct.pack("<I", value)
    return out


def values_of(signature, data):
    """The counterpart of body_of, and arrays of strings."""
    at, values = 0, []

    def word():
        nonlocal at
        at += -at % 4
        at += 4
        return struct.unpack_from("<I", data, at - 4)[0]

    def string():
        nonlocal at
        size = word()
        at += size + 1
        return data[at - size - 1:at - 1].decode()

    for kind in signature.replace("ay", "A").replace("as", "S"):
        if kind == "s":
            values.append(string())
        elif kind == "A":
            size = word()
            values.append(data[at:at + size])
            at += size
        elif kind == "S":
            end, strings = word(), []
            end += at
            while at < end:
                strings.append(string())
            values.append(strings)
        elif kind in "uhb":
            values.append(word())
        else:
            return values + [data[at:]]
    return values


class Message:
    def __init__(self, kind, serial, fields, body, fds):
        self.kind, self.serial, self.fields, self.body, self.fds = kind, serial, fields, body, fds

    member = property(lambda self: self.fields.get(3))
    error = property(lambda self: self.fields.get(4))
    sender = property(lambda self: self.fields.get(7))
    values = property(lambda self: values_of(self.fields.get(8, ""), self.body))


class Client:
    """One connection to the bus, in lock-step unless the caller says otherwise."""

    def __init__(self, run, where):
        self.conn, self.serial, self.data, self.fds, self.later = run.connect(where), 0, b"", [], []
        if isinstance(where, int):
            self.conn.sendall(b"\0AUTH ANONYMOUS\r\n")
        else:
            self.conn.sendall(b"\0AUTH EXTERNAL %s\r\n" % str(os.getuid()).encode().hex().encode())
        check(read_until(self.conn, b"\r\n").startswith(b"OK "), "the bus lets us in")
        if not isinstance(where, int):
            self.conn.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            check_equal(read_until(self.conn, b"\r\n"), b"AGREE_UNIX_FD\r\n", "the answer")
        self.conn.sendall(b"BEGIN\r\n")
        self.name = self.bus("Hello")[0]
        self.told("NameAcquired")

    def pack(self, kind, signature, values, fds=(), flags=0, **fields):
        self.serial += 1
        numbers = {"path": (1, "o"), "interface": (2, "s"), "member": (3, "s"), "error": (4, "s"), "reply": (5, "u"),
                   "to": (6, "s")}
        listed = [numbers[name] + (value,) for name, value in fields.items() if value is not None]
        if signature:
            listed.append((8, "g", signature))
        if fds:
            listed.append((9, "u", len(fds)))
        heads = b""
        for number, type_, value in listed:
            heads = pad(heads, 8) + bytes([number, 1]) + type_.encode() + b"\0"
            if type_ == "u":
                heads = pad(heads, 4) + struct.pack("<I", value)
            elif type_ == "g":
                heads += bytes([len(value)]) + value.encode() + b"\0"
            else:
                heads = pad(heads, 4) + text(value)
        body = body_of(signature, values)
        return pad(b"l" + bytes([kind, flags, 1]) + struct.pack("<III", len(body), self.serial, len(heads)) + heads, 8) + body

    def send(self, *words, fds=(), **more):
        data = self.pack(*words, fds=fds, **more)
        if fds:
            sent = socket.send_fds(self.conn, [data], list(fds))
            data = data[sent:]
        self.conn.sendall(data)
        return self.serial

    def need(self, count):
        while len(self.data) < count:
            data, fds, _, _ = socket.recv_fds(self.conn, 65536, 64)
            if not data:
                raise Failure("the bus closed the connection")
            self.data += data
            self.fds += fds

    def message(self):
        """The next message that comes."""
        self.need(16)
        kind = self.data[1]
        size, serial, heads = struct.unpack_from("<III", self.data, 4)
        start = 16 + heads + -heads % 8
        self.need(start + size)
        fields, at = {}, 16
        while at < 16 + heads:
            at += -at % 8
            number, type_ = self.data[at], self.data[at + 2:at + 3]
            at += 4
            if type_ == b"g":
                length = self.data[at]
                fields[number] = self.data[at + 1:at + 1 + length].decode()
                at += length + 2
                continue
            at += -at % 4
            value = struct.unpack_from("<I", self.data, at)[0]
            at += 4
            if type_ in b"so":
                fields[number] = self.data[at:at + value].decode()
                at += value + 1
            else:
                fields[number] = value
        count = fields.get(9, 0)
        check(len(self.fds) >= count, "a message of %d descriptors came with %d", count, len(self.fds))
        message = Message(kind, serial, fields, self.data[start:start + size], self.fds[:count])
        self.data, self.fds = self.data[start + size:], self.fds[count:]
        return message

    def next(self, wanted=lambda message: True):
        """The next one that is wanted; the others wait for their time."""
        for index, message in enumerate(self.later):
            if wanted(message):
                return self.later.pop(index)
        while True:
            message = self.message()
            if wanted(message):
                return message
            self.later.append(message)

    def answer_to(self, serial):
        return self.next(lambda message: message.kind in (RETURN, ERROR) and message.fields.get(5) == serial)

    def bus(self, member, signature="", *values):
        serial = self.send(CALL, signature, values, path="/org/freedesktop/DBus", interface=BUS, member=member, to=BUS)
        got = self.answer_to(serial)
        return got.error if got.kind == ERROR else got.values

    def call(self, to, member, signature="", *values, fds=(), flags=0):
        return self.send(CALL, signature, values, fds=fds, flags=flags, path="/a", interface="a.b", member=member, to=to)

    def reply(self, message, signature="", *values, fds=()):
        self.send(RETURN, signature, values, fds=fds, reply=message.serial, to=message.sender)

    def signal(self, member, signature="", *values):
        self.send(SIGNAL, signature, values, path="/a", interface="a.b", member=member)

    def told(self, member):
        return self.next(lambda message: message.kind == SIGNAL and message.member == member)


class Daemon:
    def __init__(self, run, policy=""):
        self.run, self.port = run, run.free_port()
        self.bus = os.path.join(run.directory, "bus")
        run.file("bus.conf", CONFIG % {"dir": run.directory, "address": suite.address, "port": self.port, "policy": policy})
        self.process = run.start(["dbus-daemon", "--nofork", "--nopidfile", "--config-file",
                                  os.path.join(run.directory, "bus.conf")])
        run.wait_for_listener(self.process, self.bus)
        run.wait_for_listener(self.process, self.port)
        run.expect_ring(self.process)

    def client(self):
        return Client(self.run, self.bus)

    def by_tcp(self):
        return Client(self.run, self.port)

    def end(self, number=signal.SIGTERM):
        self.process.end(number, 0)
        self.run.check_port_is_free(self.port, reuse=True)


def asked(client, server, size):
    """A call with a body, answered by another client with the same."""
    body = bytes(index * 7 & 255 for index in range(size))
    serial = client.call(server.name, "Echo", "ays", body, "%d bytes" % size)
    call = server.next(lambda message: message.kind == CALL)
    check_equal(call.sender, client.name, "the sender")
    server.reply(call, "ays", *call.values)
    got = client.answer_to(serial)
    check_equal(got.values, [body, "%d bytes" % size], "what came back")


def families(daemon):
    return (("unix", daemon.client), ("tcp", daemon.by_tcp))


@suite.case
def calls(run):
    daemon, seen = Daemon(run), []
    for family, client in families(daemon):
        one, two = client(), client()
        seen += [family, one.bus("RequestName", "su", "a.one", 0), one.bus("RequestName", "su", "a.one", 0),
                 two.bus("RequestName", "su", "a.one", 4), two.bus("GetNameOwner", "s", "a.one")[0] == one.name,
                 two.bus("NameHasOwner", "s", "a.two"), two.bus("GetNameOwner", "s", "a.two"),
                 two.bus("NoSuchMethod"), one.bus("ListQueuedOwners", "s", "a.one")[0] == [one.name],
                 sorted(name for name in one.bus("ListNames")[0] if name[0] != ":")]
        for size in [0, 1, 100, 1000, 4000, 9000, 70000, 300000] + [64] * 100:
            asked(one, two, size)
            asked(two, one, size)
        got = two.answer_to(two.call("a.nobody", "Echo"))
        seen += [got.error, one.bus("ReleaseName", "s", "a.one"), two.bus("ReleaseName", "s", "a.one")]
        # The bus answers for a client that goes away.
        serial = one.call(two.name, "Echo")
        two.next(lambda message: message.kind == CALL)
        two.conn.close()
        seen += [one.answer_to(serial).error, one.bus("NameHasOwner", "s", two.name)]
        one.conn.close()
    daemon.end()
    return seen


@suite.case
def signals(run):
    daemon = Daemon(run)
    talker, talker_tcp = daemon.client(), daemon.by_tcp()
    listeners = [make() for _, make in families(daemon) for _ in range(12)]
    for listener in listeners:
        listener.bus("AddMatch", "s", "type='signal',interface='a.b'")
    counts = []
    for one in (talker, talker_tcp):
        # All at once: what a program reads and writes in one turn are then many messages.
        for index in range(200):
            one.signal("Said", "us", index, "x" * (index * 5 % 900))
        for listener in listeners:
            got = [listener.told("Said") for _ in range(200)]
            check_equal([message.values[0] for message in got], list(range(200)), "the order of the signals")
            check(all(message.sender == one.name for message in got), "another sender")
            counts.append(sum(len(message.body) for message in got))
    listeners[0].bus("RemoveMatch", "s", "type='signal',interface='a.b'")
    talker.signal("Last")
    counts += [listener.told("Last").member for listener in listeners[1:]]
    counts.append(listeners[0].bus("GetId")[0] == talker.bus("GetId")[0])
    check(not [message for message in listeners[0].later if message.member == "Last"], "a signal without its rule")
    daemon.end()
    return counts + [check_ended(listener.conn) for listener in listeners + [talker, talker_tcp]]


@suite.case
def who_is_there(run):
    daemon, seen = Daemon(run), []
    watcher = daemon.client()
    watcher.bus("AddMatch", "s", "type='signal',member='NameOwnerChanged'")
    for _, make in families(daemon):
        for abrupt in (False, True):
            other = make()
            check_equal(watcher.told("NameOwnerChanged").values, [other.name, "", other.name], "the first word of a client")
            other.bus("RequestName", "su", "a.name", 0)
            check_equal(watcher.told("NameOwnerChanged").values, ["a.name", "", other.name], "the word of its name")
            if abrupt:
                other.call(watcher.name, "Last", "ay", b"x" * 3000, flags=1)
                other.conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.conn.close()
            ends = sorted(watcher.told("NameOwnerChanged").values[0] for _ in range(2))
            check_equal(ends, sorted(["a.name", other.name]), "what ended")
            seen.append(sum(message.kind == CALL for message in watcher.later))
    other = daemon.client()
    seen += [watcher.bus("GetConnectionUnixUser", "s", other.name), watcher.bus("GetConnectionUnixProcessID", "s", other.name)[0]
             == os.getpid(), watcher.bus("GetConnectionUnixUser", "s", "a.nobody")]
    credentials = watcher.bus("GetConnectionCredentials", "s", other.name)[0]
    check(struct.pack("<I", os.getpid()) in credentials, "our process in the credentials")
    seen.append([name in credentials for name in (b"ProcessID", b"UnixUserID")])
    daemon.end()
    return seen


@suite.case
def descriptors(run):
    daemon = Daemon(run)
    one, two = daemon.client(), daemon.client()
    for round_ in range(60):
        count = round_ % 5
        ends = [os.pipe() for _ in range(count)]
        one.call(two.name, "Before", "ay", b"b" * (round_ * 37 % 3000), flags=1)
        one.call(two.name, "Take", "u" + "h" * count, round_, *range(count), fds=[end[1] for end in ends], flags=1)
        one.call(two.name, "After", "ay", b"a" * (round_ * 91 % 3000), flags=1)
        for end in ends:
            os.close(end[1])
        got = [two.next() for _ in range(3)]
        check_equal([message.member for message in got], ["Before", "Take", "After"], "the messages")
        check_equal([len(message.fds) for message in got], [0, count, 0], "their descriptors")
        for index, fd in enumerate(got[1].fds):
            os.write(fd, b"%d" % index)
            os.close(fd)
        for index, end in enumerate(ends):
            check_equal(os.read(end[0], 10), b"%d" % index, "what came through the pipe")
            check_equal(os.read(end[0], 10), b"", "its end: nobody else has it")
            os.close(end[0])
    # Many at once, and some to one that goes away and does not take them.
    ends = [os.pipe() for _ in range(200)]
    for index, end in enumerate(ends):
        one.call(two.name, "Take", "uh", index, 0, fds=[end[1]], flags=1)
        os.close(end[1])
    for index, end in enumerate(ends[:100]):
        got = two.next()
        check_equal(got.values[0], index, "the number")
        os.write(got.fds[0], b"%d" % index)
        os.close(got.fds[0])
        check_equal(os.read(end[0], 10), b"%d" % index, "what came through the pipe")
    for fd in two.fds:
        os.close(fd)
    two.conn.close()
    for end in ends:
        check_equal(os.read(end[0], 10), b"", "the end of every one")
        os.close(end[0])
    # One to the TCP client, which cannot have it.
    by_tcp, end = daemon.by_tcp(), os.pipe()
    got = one.answer_to(one.call(by_tcp.name, "Take", "h", 0, fds=[end[1]]))
    os.close(end[1])
    check_equal(os.read(end[0], 10), b"", "the end")
    os.close(end[0])
    daemon.end()
    return [got.error]


SERVICE = """#!/bin/sh
echo "$DBUS_STARTER_ADDRESS" >> %(dir)s/started
exec dbus-send --bus="$DBUS_STARTER_ADDRESS" --print-reply --dest=org.freedesktop.DBus \
    /org/freedesktop/DBus org.freedesktop.DBus.RequestName string:%(name)s uint32:0
"""


@suite.case
def activation(run):
    daemon, seen = Daemon(run), []
    for name in ("a.ends", "a.fails"):
        script = run.file(name + ".sh", SERVICE % {"dir": run.directory, "name": name} if name == "a.ends"
                          else "#!/bin/sh\nexit 3\n")
        os.chmod(script, 0o755)
        run.file(name + ".service", "[D-BUS Service]\nName=%s\nExec=%s\n" % (name, script))
    client = daemon.client()
    seen.append(client.bus("ReloadConfig"))
    seen.append(sorted(name for name in client.bus("ListActivatableNames")[0]))
    client.bus("AddMatch", "s", "type='signal',member='NameOwnerChanged',arg0='a.ends'")
    for _ in range(3):
        seen.append(client.bus("StartServiceByName", "su", "a.ends", 0))
        seen.append([bool(part) for part in client.told("NameOwnerChanged").values])
        seen.append([bool(part) for part in client.told("NameOwnerChanged").values])
    seen.append(client.bus("StartServiceByName", "su", "a.fails", 0))
    seen.append(client.answer_to(client.call("a.fails", "Echo")).error)
    seen.append(client.bus("StartServiceByName", "su", "a.nobody", 0))
    daemon.end()
    return seen


@suite.case
def many_at_once(run):
    daemon = Daemon(run)
    makes = [make for _, make in families(daemon)]

    def talk(index):
        one, two = makes[index % 2](), makes[index // 2 % 2]()
        for size in range(0, 2500, 50):
            asked(one, two, size)
        one.conn.close()
        two.conn.close()
        return True
    done = in_threads([lambda index=index: talk(index) for index in range(24)])
    daemon.process.send_signal(signal.SIGHUP)
    names = daemon.client()
    wait_until(lambda: len(names.bus("ListNames")[0]) == 2, "all others are gone")
    daemon.end()
    return done


@suite.case
def one_that_does_not_read(run):
    daemon = Daemon(run, policy="")
    sleeper, talker, count = daemon.client(), daemon.client(), 60
    sleeper.bus("AddMatch", "s", "type='signal',interface='a.b'")
    body = bytes(range(256)) * 256
    for index in range(count):
        talker.signal("Big", "uay", index, body)
    # The bus keeps what it cannot write, and serves the others.
    talker.bus("GetId")
    for index in range(count):
        got = sleeper.told("Big").values
        check(got[0] == index and got[1] == body, "signal %d is another", index)
    daemon.end()
    return count


@suite.case
def tools(run):
    if not find_program("dbus-monitor"):
        raise Skipped("its tools are not installed")
    daemon = Daemon(run)
    address = "unix:path=" + daemon.bus
    client = daemon.client()
    monitor = run.start(["dbus-monitor", "--address", address, "--monitor"])
    wait_until(lambda: "NameLost" in monitor.output() or "NameAcquired" in monitor.output(), "the monitor is there")
    for index in range(20):
        run.call(["dbus-send", "--bus=" + address, "--type=signal", "/a", "a.b.Sent", "uint32:%d" % index])
    out = run.call(["dbus-send", "--bus=" + address, "--print-reply=literal", "--dest=" + BUS, "/org/freedesktop/DBus",
                    BUS + ".NameHasOwner", "string:" + client.name])
    wait_until(lambda: "NameHasOwner" in monitor.output(), "the monitor has seen the call")
    seen = [monitor.output().count("member=Sent"), out.strip()]
    daemon.end()
    monitor.wait()
    return seen


@suite.case
def killed(run):
    daemon = Daemon(run)
    clients = [make() for _, make in families(daemon) for _ in range(3)]
    for client in clients:
        client.bus("GetId")
    seen = daemon.run.end_or_kill(daemon.process, signal.SIGKILL, daemon.port, [client.conn for client in clients])
    return seen


if __name__ == "__main__":
    suite.main()
