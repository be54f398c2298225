#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Name servers whose sockets all are libuv's. named (bind9): datagrams, streams with and without
TLS, zone transfers to a client and to a second named, updates, a forwarder, rndc, reloads, ends.
kresd (knot-resolver): a resolver in front of a named."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import hashlib
import os
import re
import select
import signal
import socket
import ssl
import struct

from harness import (Failure, Skipped, Suite, check, check_ended, check_equal, find_program, in_threads, read_exactly,
                     wait_until)

suite = Suite("named", needs=["named", "rndc"], library="libuv")
# It listens on addresses that an interface has, and on no other of 127/8.
suite.address = "127.0.0.1"

A, NS, SOA, TXT, AXFR = 1, 2, 6, 16, 252
QUERY, UPDATE = 0, 5
KEY = 'key "control" { algorithm hmac-sha256; secret "c2hlIHNlbGxzIHNlYSBzaGVsbHMgYnkgdGhlIHNlYSE="; };\n'
HOSTS = 3000


def zone_text(serial, hosts=HOSTS):
    """Plain hosts, texts that need TCP, a name with as much as one message can hold."""
    lines = ["$TTL 300", "@ SOA ns admin %d 60 60 6000 60" % serial, "@ NS ns", "ns A 192.0.2.1"]
    lines += ["host%d A 192.0.2.%d" % (i, i % 250 + 1) for i in range(hosts)]
    lines += ["text%d TXT \"%s\"" % (i, "t%d." % i * 60) for i in range(20)]
    for i in range(8):
        lines += ["big%d TXT %s" % (i, " ".join("\"%03d%s\"" % (j, "b" * 240) for _ in range(3 * (i + 1))))
                  for j in range(10)]
    lines.append("serial TXT \"serial %d\"" % serial)
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------- DNS, as a client

def packed_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def message(number, name, kind=A, opcode=QUERY, more=b"", authority=0, size=1232, recursion=False):
    extra = b"" if not size else b"\0" + struct.pack(">HHIH", 41, size, 0, 0)
    return struct.pack(">HHHHHH", number, opcode << 11 | recursion << 8, 1, 0, authority, 1 if size else 0) + \
        packed_name(name) + struct.pack(">HH", kind, 1) + more + extra


class Answer:
    """What a message says: its number, code, flags and records, whose names are written out."""

    def __init__(self, data):
        self.data, self.at = data, 12
        self.number, flags, questions, answers, authority, extra = struct.unpack(">HHHHHH", data[:12])
        self.code, self.truncated = flags & 15, bool(flags & 0x200)
        for _ in range(questions):
            self.name()
            self.at += 4
        self.records = [self.record() for _ in range(answers)]
        self.others = [self.record() for _ in range(authority + extra)]
        check_equal(self.at, len(data), "the end of a message")

    def name(self):
        labels, at, jumped = [], self.at, False
        while self.data[at]:
            if self.data[at] >= 0xc0:
                if not jumped:
                    self.at, jumped = at + 2, True
                at = struct.unpack(">H", self.data[at:at + 2])[0] & 0x3fff
                continue
            labels.append(self.data[at + 1:at + 1 + self.data[at]].decode())
            at += 1 + self.data[at]
        if not jumped:
            self.at = at + 1
        return ".".join(labels)

    def record(self):
        name = self.name()
        kind, _, ttl, size = struct.unpack(">HHIH", self.data[self.at:self.at + 10])
        self.at += 10
        end = self.at + size
        value = self.data[self.at:end]
        if kind == SOA:
            value = (self.name(), self.name(), self.data[self.at:end])
        elif kind == NS:
            value = self.name()
        self.at = end
        return name, kind, ttl, value

    def content(self):
        return [self.code, self.truncated, sorted(map(repr, self.records))]


def digest(records):
    return hashlib.sha1("\n".join(sorted(map(repr, records))).encode()).hexdigest()


def framed(data):
    return struct.pack(">H", len(data)) + data


def read_message(conn):
    return read_exactly(conn, struct.unpack(">H", read_exactly(conn, 2))[0])


class Datagrams:
    """A client of its own port."""

    def __init__(self, named):
        self.number, self.socket = 0, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((suite.address, named.port))
        self.socket.settimeout(10)
        named.run.sockets.append(self.socket)

    def ask(self, questions, **options):
        """Answers in the order of the questions; they are sent at once, and again what got lost (it may)."""
        answers, queries = {}, {}
        for each in questions:
            self.number += 1
            queries[self.number & 0xffff] = message(self.number & 0xffff, *each, **options)
        for _ in range(5):
            for number in queries:
                if number not in answers:
                    self.socket.send(queries[number])
            while len(answers) < len(queries) and select.select([self.socket], [], [], 2)[0]:
                answer = Answer(self.socket.recv(65536))
                if answer.number in queries:
                    answers[answer.number] = answer
            if len(answers) == len(queries):
                return [answers[number] for number in queries]
        raise Failure("%d of %d answers" % (len(answers), len(queries)))


# ---------------------------------------------------------------------- servers

NEXT_PORT = [10000 + os.getpid() * 100 % 22000]


def free_port():
    """Free for streams and datagrams, and never the one that a client gets by itself."""
    while True:
        NEXT_PORT[0] = 10000 + (NEXT_PORT[0] - 10000 + 1) % 22000
        with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            try:
                stream.bind((suite.address, NEXT_PORT[0]))
                datagram.bind((suite.address, NEXT_PORT[0]))
                return NEXT_PORT[0]
            except OSError:
                continue


class Named:
    def __init__(self, run, name="primary", zone=None, options="", port=None):
        self.run, self.directory = run, os.path.join(run.directory, name)
        os.mkdir(self.directory)
        self.port, self.tls_port, self.control = port or free_port(), free_port(), free_port()
        self.zone_file = os.path.join(self.directory, "zone")
        self.write_zone(1)
        zone = zone or 'zone "example.test" { type primary; file "zone"; allow-update { any; }; };\n'
        self.configuration = self.file("named.conf", KEY + """
            options { directory "%(directory)s"; pid-file none; session-keyfile "%(directory)s/session.key";
                listen-on port %(port)d { %(address)s; }; listen-on port %(tls_port)d tls ephemeral { %(address)s; };
                listen-on-v6 { none; }; allow-transfer { any; }; allow-query { any; }; dnssec-validation no;
                notify-delay 0; notify-source %(address)s; transfer-source %(address)s; query-source %(address)s;
                minimal-responses yes; tcp-clients 500; empty-zones-enable no;
                managed-keys-directory "%(directory)s"; rate-limit { responses-per-second 0; }; %(options)s };
            controls { inet %(address)s port %(control)d allow { any; } keys { "control"; }; };
            """ % dict(vars(self), address=suite.address, options=options) + zone)
        self.file("rndc.conf", KEY + 'options { default-key "control"; default-server %s; default-port %d; };\n' %
                  (suite.address, self.control))
        self.process = run.start(["named", "-g", "-n", "2", "-c", self.configuration], name=name)
        wait_until(lambda: not self.process.alive() or re.search(r" running$", self.process.errors(), re.M), "named runs")
        check(self.process.alive(), "named ended: %s", self.process.errors()[-2000:])
        run.wait_for_listener(self.process, self.port)
        run.expect_ring(self.process, cqes=10)

    def file(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def write_zone(self, serial, hosts=HOSTS):
        path = self.file("zone", zone_text(serial, hosts))
        # It looks at the seconds of the file's age.
        os.utime(path, (1e9 + serial, 1e9 + serial))

    def rndc(self, *words):
        return self.run.call(["rndc", "-c", os.path.join(self.directory, "rndc.conf")] + list(words))

    def connect(self, tls=False):
        if not tls:
            return self.run.connect(self.port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["dot"])
        conn = context.wrap_socket(self.run.connect(self.tls_port))
        self.run.sockets.append(conn)
        return conn

    def ask(self, *words, **options):
        """One question by TCP."""
        with self.connect() as conn:
            conn.sendall(framed(message(1, *words, size=0, **options)))
            return Answer(read_message(conn))

    def wait_for_serial(self, serial, name="serial.example.test"):
        text = ("serial %d" % serial).encode()
        wait_until(lambda: any(text in record[3] for record in self.ask(name, TXT).records), "serial %d" % serial)

    def transfer(self, zone="example.test"):
        """The records of an AXFR, and in how many messages they came."""
        with self.connect() as conn:
            conn.sendall(framed(message(7, zone, AXFR, size=0)))
            records, messages = [], 0
            while sum(record[1] == SOA for record in records) < 2:
                answer = Answer(read_message(conn))
                check_equal((answer.number, answer.code), (7, 0), "number and code")
                records += answer.records
                messages += 1
            check_equal(records[0], records[-1], "the last record of a transfer")
            return records, messages

    def end(self, number=signal.SIGTERM, conns=()):
        self.process.end(number, 0)
        for port in (self.port, self.tls_port, self.control):
            self.run.check_port_is_free(port, reuse=True)
        self.run.check_datagram_port_is_free(self.port)
        return [check_ended(conn) for conn in conns]


# ------------------------------------------------------------------------ cases

def questions(count, start=0):
    """Hosts, names that are not there, texts that do not fit into a datagram."""
    kinds = [lambda i: ("host%d.example.test" % (i % HOSTS), A), lambda i: ("host%d.example.test" % (i * 7 % HOSTS), A),
             lambda i: ("none%d.example.test" % i, A), lambda i: ("text%d.example.test" % (i % 20), TXT),
             lambda i: ("big%d.example.test" % (i % 8), TXT), lambda i: ("elsewhere%d.test" % i, A),
             lambda i: ("example.test", SOA)]
    return [kinds[i % len(kinds)](i) for i in range(start, start + count)]


@suite.case
def datagrams(run):
    named = Named(run)

    def client(start):
        asked = Datagrams(named)
        seen = []
        for turn in range(40):
            words = questions(20, start + turn * 20)
            seen += [answer.content() for answer in asked.ask(words)]
        return seen

    results = in_threads([lambda start=start: client(start) for start in range(0, 4000, 1000)])
    # Junk between questions: too short, not DNS, an answer, an opcode that is none.
    asked = Datagrams(named)
    for junk in (b"", b"x", b"\0" * 11, b"\0\1\x80" + b"\0" * 9, bytes(range(256)) * 12, b"\xff" * 60000):
        asked.socket.send(junk)
        check_equal(asked.ask([("ns.example.test",)])[0].code, 0, "the code after junk")
    named.end()
    return [results, [sum(content[0] == code for content in sum(results, [])) for code in range(6)]]


@suite.case
def streams(run):
    named = Named(run)

    def client(start, tls):
        conn, seen = named.connect(tls), []
        for turn in range(6):
            words = questions(15, start + turn * 15)
            data = b"".join(framed(message(i, *each)) for i, each in enumerate(words))
            if turn == 1:
                for byte in data[:300]:
                    conn.sendall(bytes([byte]))
                data = data[300:]
            conn.sendall(data)
            answers = {answer.number: answer for answer in (Answer(read_message(conn)) for _ in words)}
            seen += [answers[i].content() for i in range(len(words))]
        # A half-closed stream may still be answered, and ends.
        conn.shutdown(socket.SHUT_WR)
        check_ended(conn, 40)
        return seen

    results = in_threads([lambda start=start: client(start, start % 2) for start in range(12)])
    # As much as a message can have, on a connection that nobody reads for a while.
    conn = named.connect()
    names = ["big%d.example.test" % (i % 8) for i in range(80)]
    conn.sendall(b"".join(framed(message(i, name, TXT)) for i, name in enumerate(names)))
    check_equal(named.ask("ns.example.test").code, 0, "the code beside a slow reader")
    sizes = {}
    for _ in names:
        answer = Answer(read_message(conn))
        sizes[answer.number] = [len(answer.data), digest(answer.records)]
    # It must come to its end with connections that ask nothing, and one in the middle of a question.
    idle = [named.connect() for _ in range(30)]
    idle[0].sendall(b"\0\x40half a question")
    check_equal(named.ask("ns.example.test").code, 0, "the code beside idle connections")
    named.end(conns=idle + [conn])
    return [results, [sizes[i] for i in range(len(names))]]


@suite.case
def transfers_and_updates(run):
    port = free_port()
    named, seen = Named(run, options="notify explicit; also-notify { %s port %d; };" % (suite.address, port)), []
    transfers = in_threads([named.transfer] * 6)
    check(all(records == transfers[0][0] for records, _ in transfers), "transfers differ")
    seen += [len(transfers[0][0]), digest(transfers[0][0])]
    # A second one, which fetches the zone, and is told of changes.
    second = Named(run, "secondary", 'zone "example.test" { type secondary; file "copy"; primaries { %s port %d; }; };\n' %
                   (suite.address, named.port), port=port)
    second.wait_for_serial(1)
    records, _ = second.transfer()
    check_equal(digest(records), seen[-1], "the copied zone")
    for number in range(20):
        owner = "new%d.example.test" % number
        value = b"\x09added %03d" % number
        update = packed_name(owner) + struct.pack(">HHIH", TXT, 1, 60, len(value)) + value
        check_equal(named.ask("example.test", SOA, opcode=UPDATE, more=update, authority=1).code, 0, "the code of an update")
        check_equal([record[3] for record in named.ask(owner, TXT).records], [value], "what was added")
    # The last of them comes by notification and an incremental transfer.
    wait_until(lambda: second.ask("new19.example.test", TXT).records, "the changes are at the second one")
    records, _ = second.transfer()
    check_equal(digest(records), digest(named.transfer()[0]), "the zone that was copied again")
    seen += [len(records), digest(records)]
    second.end()
    named.end()
    return seen


@suite.case
def forwards_and_caches(run):
    named = Named(run)
    forwarder = Named(run, "forwarder", zone="\n", options="recursion yes; allow-recursion { any; }; forward only; "
                      "forwarders { %s port %d; };" % (suite.address, named.port))

    def client(start):
        asked, seen = Datagrams(forwarder), []
        for turn in range(15):
            words = [("host%d.example.test" % ((start + turn * 20 + i) % HOSTS), A) for i in range(18)]
            words += [("text%d.example.test" % turn, TXT), ("none%d.example.test" % (start + turn), A)]
            answers = asked.ask(words, recursion=True)
            seen += [[answer.code, answer.truncated, sorted(record[3] for record in answer.records)] for answer in answers]
        return seen

    results = in_threads([lambda start=start: client(start) for start in (0, 0, 700, 1400)])
    # What is too large for a datagram: it asks by TCP itself.
    with forwarder.connect() as conn:
        for i in range(8):
            conn.sendall(framed(message(i, "big%d.example.test" % i, TXT, recursion=True)))
            answer = Answer(read_message(conn))
            results.append([answer.code, digest([record[3] for record in answer.records])])
    forwarder.rndc("flush")
    results.append(forwarder.ask("host1.example.test", recursion=True).code)
    # Its server is gone: it says so, and ends.
    named.end()
    forwarder.rndc("flush")
    results.append(forwarder.ask("host2.example.test", recursion=True).code)
    forwarder.end()
    return results


class Kresd:
    """It asks `named` for all."""

    def __init__(self, run, named, name="kresd"):
        if not find_program("kresd"):
            raise Skipped("kresd is not installed (Debian: knot-resolver)")
        self.run, self.directory = run, os.path.join(run.directory, name)
        self.port, self.tls_port = free_port(), free_port()
        os.mkdir(self.directory)
        with open(os.path.join(self.directory, "config"), "w") as file:
            file.write("net.listen('%(address)s', %(port)d, { kind = 'dns' })\n"
                       "net.listen('%(address)s', %(tls)d, { kind = 'tls' })\n"
                       "cache.size = 10 * MB\nmodules = { 'policy' }\ntrust_anchors.remove('.')\n"
                       "policy.add(policy.all(policy.STUB('%(address)s@%(named)d')))\n" %
                       {"address": suite.address, "port": self.port, "tls": self.tls_port, "named": named.port})
        self.process = run.start(["kresd", "-n", "-c", os.path.join(self.directory, "config"), self.directory], name=name)
        run.wait_for_listener(self.process, self.port)
        run.wait_for_listener(self.process, self.tls_port)
        run.expect_ring(self.process)

    connect = Named.connect

    def talking(self, count):
        """Connections that have asked: of others it learns nothing (TCP_DEFER_ACCEPT)."""
        conns = [self.connect() for _ in range(count)]
        for conn in conns:
            conn.sendall(framed(message(1, "host1.example.test", recursion=True)))
            check_equal(Answer(read_message(conn)).code, 0, "the code")
        return conns

    def command(self, text):
        """By its control socket."""
        path = os.path.join(self.directory, "control", str(self.process.pid))
        wait_until(lambda: os.path.exists(path), "its control socket")
        conn = self.run.connect(path)
        conn.sendall(b"__binary\n" + text.encode() + b"\n")
        check(read_exactly(conn, 2) == b"> ", "no prompt")
        return read_exactly(conn, struct.unpack(">I", read_exactly(conn, 4))[0]).decode().strip()


@suite.case
def kresd_resolves(run):
    named = Named(run)
    kresd = Kresd(run, named)

    def datagrams_of(start):
        asked, seen = Datagrams(kresd), []
        for turn in range(12):
            words = [("host%d.example.test" % ((start + turn * 20 + i) % HOSTS), A) for i in range(18)]
            words += [("text%d.example.test" % turn, TXT), ("none%d.example.test" % (start + turn), A)]
            seen += [[answer.code, answer.truncated, sorted(record[3] for record in answer.records)]
                     for answer in asked.ask(words, recursion=True)]
        return seen

    def streams_of(start, tls):
        conn, seen = kresd.connect(tls), []
        for turn in range(4):
            words = [("host%d.example.test" % ((start + turn * 10 + i) % HOSTS), A) for i in range(10)]
            words += [("big%d.example.test" % ((start + turn) % 8), TXT)]
            conn.sendall(b"".join(framed(message(i, *each, recursion=True)) for i, each in enumerate(words)))
            answers = {answer.number: answer for answer in (Answer(read_message(conn)) for _ in words)}
            seen += [[answers[i].code, digest([record[3] for record in answers[i].records])] for i in range(len(words))]
        conn.shutdown(socket.SHUT_WR)
        check_ended(conn, 40)
        return seen

    jobs = [lambda start=start: datagrams_of(start) for start in (0, 0, 700, 1400)]
    jobs += [lambda start=start: streams_of(start, start % 2) for start in range(2000, 2008)]
    seen = in_threads(jobs)
    # Again, out of its cache: its server is asked no more, and gone.
    named.end()
    asked = Datagrams(kresd)
    seen.append([answer.code for answer in asked.ask([("host%d.example.test" % i, A) for i in range(20)], recursion=True)])
    seen.append([kresd.command("1 + 1"), kresd.command("cache.count() > 100")])
    conns = kresd.talking(10)
    seen.append(kresd.process.end(signal.SIGTERM))
    seen.append([check_ended(conn) for conn in conns])
    for port in (kresd.port, kresd.tls_port):
        run.check_port_is_free(port, reuse=True)
        run.check_datagram_port_is_free(port)
    return seen


@suite.case
def kresd_killed(run):
    named = Named(run)
    for turn in range(2):
        kresd = Kresd(run, named, "kresd%d" % turn)
        conns = kresd.talking(10 * turn)
        check_equal(Datagrams(kresd).ask([("ns.example.test",)] * 3, recursion=True)[0].code, 0, "the code")
        run.look(kresd.process.pid)
        run.kill_and_rebind(kresd.process, kresd.port, conns)
        run.check_datagram_port_is_free(kresd.port)
    named.end()


@suite.case
def reloads_and_control(run):
    named, seen = Named(run, zone='zone "example.test" { type primary; file "zone"; };\n'), []
    conn = named.connect()
    for serial in range(2, 6):
        named.write_zone(serial, 500)
        named.process.send_signal(signal.SIGHUP)
        named.wait_for_serial(serial)
        conn.sendall(framed(message(serial, "host499.example.test")))
        seen.append(Answer(read_message(conn)).content())
    for serial in range(6, 10):
        named.write_zone(serial, 500)
        seen.append(named.rndc("reload"))
        named.wait_for_serial(serial)
    # Of several at once one may get an empty answer, on epoll as well.
    seen += in_threads([lambda: wait_until(lambda: named.rndc("zonestatus", "example.test").splitlines()[:4], "a status")] * 6)
    seen.append(re.search(r"server is up and running", named.rndc("status")).group(0))
    # Another address of its own while it runs, by a new configuration.
    more = free_port()
    with open(named.configuration) as file:
        text = file.read()
    named.file("named.conf", text.replace("listen-on-v6", "listen-on port %d { %s; }; listen-on-v6" % (more, suite.address)))
    named.rndc("reconfig")
    run.wait_for_listener(named.process, more)
    with run.connect(more) as other:
        other.sendall(framed(message(1, "ns.example.test")))
        seen.append(Answer(read_message(other)).content())
    named.file("named.conf", text)
    named.rndc("reconfig")
    wait_until(lambda: not run.is_tcp_listener(more), "it listens no more")
    run.check_port_is_free(more, reuse=True)
    named.rndc("stop")
    named.process.finish(0)
    seen.append(check_ended(conn))
    run.check_port_is_free(named.port, reuse=True)
    run.check_datagram_port_is_free(named.port)
    return seen


@suite.case
def driven_by_dnsperf(run):
    if not find_program("dnsperf"):
        raise Skipped("dnsperf is not installed (Debian: dnsperf)")
    named, seen = Named(run), []
    file = run.file("questions", "\n".join("host%d.example.test A" % i for i in range(2000)) + "\n")
    for mode, rounds in (("udp", 10), ("tcp", 10), ("dot", 2)):
        out = run.call(["dnsperf", "-s", suite.address, "-p", named.tls_port if mode == "dot" else named.port, "-m", mode,
                        "-d", file, "-n", rounds, "-c", 8, "-q", 80, "-t", 30], shim=False)
        counts = {word: int(re.search(r"Queries %s: +(\d+)" % word, out).group(1)) for word in ("sent", "completed", "lost")}
        seen.append([mode, counts, re.search(r"Response codes: +(.*)", out).group(1)])
        check_equal(counts, {"sent": 2000 * rounds, "completed": 2000 * rounds, "lost": 0}, "what dnsperf counted")
        run.notes.append("%s: %s queries in a second" % (mode, re.search(r"per second: +(\d+)", out).group(1)))
    named.end()
    return seen


@suite.case
def ends_and_killed(run):
    seen = []
    for turn, number in enumerate((signal.SIGTERM, signal.SIGINT)):
        named = Named(run, "ended%d" % turn)
        conns = [named.connect() for _ in range(10)] + [named.connect(tls=True) for _ in range(4)]
        check_equal(named.ask("ns.example.test").code, 0, "the code")
        named.end(number, conns)
    for turn in range(3):
        named = Named(run, "killed%d" % turn)
        conns = [named.connect() for _ in range(10 * turn)]
        asked = Datagrams(named)
        seen += [answer.content() for answer in asked.ask([("ns.example.test",)] * 10)]
        check_equal(named.ask("ns.example.test").code, 0, "the code")
        run.look(named.process.pid)
        run.kill_and_rebind(named.process, named.port, conns)
        run.check_datagram_port_is_free(named.port)
    return seen


if __name__ == "__main__":
    suite.main()
