#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""mosquitto: a broker with clients that publish and subscribe in all qualities of service, over TCP, TLS and AF_UNIX."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import signal
import ssl
import struct

from harness import Skipped, Suite, check, check_ended, check_equal, find_program, in_threads, read_exactly, wait_until

suite = Suite("mosquitto", needs=["mosquitto"])
CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, \
    DISCONNECT = range(1, 15)

CONFIG = """
per_listener_settings false
allow_anonymous true
persistence false
user root
max_queued_messages 0
max_inflight_messages 200
set_tcp_nodelay true
listener %(port)d %(address)s
listener 0 %(dir)s/local.sock
%(more)s
"""
TLS = """
listener %(tls)d %(address)s
certfile %(dir)s/cert.pem
keyfile %(dir)s/key.pem
"""


def words(*items):
    return b"".join(struct.pack(">H", len(item)) + item for item in items)


class Client:
    """MQTT 3.1.1, in lock-step unless the caller says otherwise."""

    def __init__(self, run, where, name, tls=None, clean=True, will=None):
        self.conn = run.connect(where)
        if tls:
            self.conn = tls.wrap_socket(self.conn)
            run.sockets.append(self.conn)
        self.number, self.later = 0, []
        flags = (2 if clean else 0) | (4 if will else 0)
        self.send(CONNECT, 0, words(b"MQTT") + bytes([4, flags]) + struct.pack(">H", 600) +
                  words(name.encode(), *(will or ())))
        kind, _, body = self.packet()
        check_equal((kind, body[1]), (CONNACK, 0), "the broker's word")
        self.session_present = body[0]

    @staticmethod
    def pack(kind, flags, body):
        size, length = len(body), b""
        while True:
            size, low = size >> 7, size & 127
            length += bytes([low | (128 if size else 0)])
            if not size:
                return bytes([kind << 4 | flags]) + length + body

    def send(self, kind, flags, body):
        self.conn.sendall(self.pack(kind, flags, body))

    def packet(self):
        head, size, shift = read_exactly(self.conn, 1)[0], 0, 0
        while True:
            byte = read_exactly(self.conn, 1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return head >> 4, head & 15, read_exactly(self.conn, size)

    def next(self, kind):
        """The next of this kind; the broker's messages are taken, as their quality asks, as they come."""
        for index, packet in enumerate(self.later):
            if packet[0] == kind:
                return self.later.pop(index)
        while True:
            packet = self.packet()
            if packet[0] == PUBREL:
                self.send(PUBCOMP, 0, packet[2])
                continue
            if packet[0] == PUBLISH and packet[1] & 6:
                size = struct.unpack(">H", packet[2][:2])[0]
                self.send(PUBACK if packet[1] & 2 else PUBREC, 0, packet[2][2 + size:4 + size])
            if packet[0] == kind:
                return packet
            self.later.append(packet)

    def subscribe(self, topic, quality):
        self.number += 1
        self.send(SUBSCRIBE, 2, struct.pack(">H", self.number) + words(topic) + bytes([quality]))
        return self.next(SUBACK)[2][2]

    def unsubscribe(self, topic):
        self.number += 1
        self.send(UNSUBSCRIBE, 2, struct.pack(">H", self.number) + words(topic))
        return self.next(UNSUBACK)[0]

    def publish(self, topic, payload, quality=0, retain=0, wait=True):
        self.number += 1 if quality else 0
        number = struct.pack(">H", self.number) if quality else b""
        self.send(PUBLISH, quality << 1 | retain, words(topic) + number + payload)
        if wait and quality:
            self.published(quality)

    def published(self, quality):
        if quality == 1:
            self.next(PUBACK)
        elif quality == 2:
            self.send(PUBREL, 2, self.next(PUBREC)[2])
            self.next(PUBCOMP)

    def message(self):
        """(topic, payload, quality, retained)"""
        _, flags, body = self.next(PUBLISH)
        size = struct.unpack(">H", body[:2])[0]
        quality = flags >> 1 & 3
        return body[2:2 + size], body[2 + size + (2 if quality else 0):], quality, flags & 1

    def ping(self):
        self.send(PINGREQ, 0, b"")
        self.next(PINGRESP)

    def leave(self):
        self.send(DISCONNECT, 0, b"")
        return check_ended(self.conn)


class Broker:
    def __init__(self, run, tls=False, more=""):
        self.run, self.port, self.tls_port = run, run.free_port(), run.free_port()
        self.local = os.path.join(run.directory, "local.sock")
        settings = {"dir": run.directory, "address": suite.address, "port": self.port, "tls": self.tls_port}
        self.context = None
        if tls:
            run.call(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                      "-days", 2, "-subj", "/CN=broker", "-keyout", run.directory + "/key.pem",
                      "-out", run.directory + "/cert.pem"], shim=False)
            more += TLS % settings
            self.context = ssl.create_default_context(cafile=run.directory + "/cert.pem")
            self.context.check_hostname = False
        run.file("broker.conf", CONFIG % dict(settings, more=more))
        self.process = run.start(["mosquitto", "-c", os.path.join(run.directory, "broker.conf")])
        for where in [self.port, self.local] + ([self.tls_port] if tls else []):
            run.wait_for_listener(self.process, where)
        run.expect_ring(self.process)

    def client(self, name, **more):
        return Client(self.run, self.port, name, **more)

    def by_tls(self, name):
        return Client(self.run, self.tls_port, name, tls=self.context)

    def by_unix(self, name):
        return Client(self.run, self.local, name)

    def end(self, number=signal.SIGTERM):
        self.process.end(number, 0)
        self.run.check_port_is_free(self.port, reuse=True)


def content(index, size):
    return bytes((index + at) * 31 & 255 for at in range(size))


@suite.case
def qualities(run):
    broker, seen = Broker(run, tls=True), []
    makes = (broker.client, broker.by_tls, broker.by_unix)
    clients = [make("c%d" % index) for index, make in enumerate(makes)]
    for quality in range(3):
        for client in clients:
            seen.append(client.subscribe(b"q/%d/#" % quality, quality))
    for quality in range(3):
        for sender in clients:
            for index, size in enumerate([0, 1, 10, 100, 1000, 3000, 9000, 70000, 10, 300000, 20] + [30] * 40):
                sender.publish(b"q/%d/%d" % (quality, index), content(index, size), quality)
                for client in clients:
                    topic, payload, got, retained = client.message()
                    check_equal((topic, got, retained), (b"q/%d/%d" % (quality, index), quality, 0), "the message")
                    check(payload == content(index, size), "message %d has other bytes", index)
    for client in clients:
        client.ping()
        seen.append(client.unsubscribe(b"q/0/#"))
        seen.append(client.leave())
        check_equal(client.later, [], "what was left")
    broker.end()
    return seen


@suite.case
def pipelined(run):
    """What a program reads and writes in one turn is many messages of many clients."""
    broker, count, each = Broker(run), 40, 60
    listeners = [broker.by_unix("l%d" % index) if index & 1 else broker.client("l%d" % index) for index in range(count)]
    for index, listener in enumerate(listeners):
        listener.subscribe(b"p/%d" % (index % 10), index % 3)
        listener.subscribe(b"all", 0)
    speaker = broker.client("s")
    for quality in range(3):
        for index in range(each):
            speaker.publish(b"p/%d" % (index % 10), b"%d %d" % (quality, index), quality, wait=False)
        for index in range(each if quality else 0):
            speaker.published(quality)
        speaker.publish(b"all", b"done")
    seen = []
    for index, listener in enumerate(listeners):
        got = [listener.message() for _ in range(3 * each // 10 + 3)]
        check_equal([payload for topic, payload, _, _ in got if topic != b"all" and payload[:1] == b"0"],
                    [b"0 %d" % number for number in range(index % 10, each, 10)], "the order")
        seen.append(got)
        listener.ping()
    broker.end()
    return seen + [check_ended(listener.conn) for listener in listeners]


@suite.case
def sessions(run):
    broker, seen = Broker(run), []
    speaker = broker.client("speaker")
    speaker.publish(b"kept", b"retained", 1, retain=1)
    keeper = broker.client("keeper", clean=False)
    seen += [keeper.session_present, keeper.subscribe(b"for/keeper", 1), keeper.leave()]
    for index in range(50):
        speaker.publish(b"for/keeper", b"%d" % index, 1)
    keeper = broker.client("keeper", clean=False)
    seen += [keeper.session_present] + [keeper.message() for _ in range(50)]
    seen += [keeper.subscribe(b"kept", 0), keeper.message()]
    # A client that takes another's place, and one whose will is said.
    other = broker.client("keeper", clean=False)
    seen += [check_ended(keeper.conn), other.session_present, other.subscribe(b"wills", 2)]
    for index, make in enumerate((broker.client, broker.client)):
        dying = make("dying%d" % index, will=(b"wills", b"last words %d" % index))
        dying.ping()
        if index:
            dying.conn.setsockopt(1, 13, struct.pack("ii", 1, 0))
        dying.conn.close()
        seen.append(other.message())
    # One that talks nonsense is thrown out, and nobody else.
    bad = broker.client("bad")
    bad.conn.sendall(b"\xff\xff\xff\xff\xff\xff")
    seen.append(check_ended(bad.conn))
    other.ping()
    broker.end()
    return seen


@suite.case
def one_that_does_not_read(run):
    broker = Broker(run)
    sleeper, speaker = broker.client("sleeper"), broker.client("speaker")
    sleeper.subscribe(b"big", 0)
    payload, count = bytes(range(256)) * 200, 120
    for index in range(count):
        speaker.publish(b"big", struct.pack(">I", index) + payload, 1)
    speaker.ping()
    for index in range(count):
        got = sleeper.message()[1]
        check(got == struct.pack(">I", index) + payload, "message %d is another", index)
    broker.end()
    return count


@suite.case
def many_clients(run):
    broker = Broker(run, tls=True)
    makes = (broker.client, broker.by_tls, broker.by_unix, broker.client)

    def talk(index):
        client, topic = makes[index % 4]("m%d" % index), b"m/%d" % index
        client.subscribe(topic, index % 3)
        for number in range(30):
            client.publish(topic, content(number, number * 50), number % 3)
            got = client.message()
            check(got[1] == content(number, number * 50), "message %d is another", number)
        return client.leave()
    seen = in_threads([lambda index=index: talk(index) for index in range(32)])
    broker.end()
    return seen


@suite.case
def tools(run):
    if not find_program("mosquitto_sub"):
        raise Skipped("its clients are not installed")
    broker = Broker(run)
    where = ["-h", suite.address, "-p", broker.port]
    watcher = broker.client("watcher")
    listeners = [run.start(["mosquitto_sub"] + where + ["-t", "t/#", "-q", quality, "-C", 21, "-v"]) for quality in range(3)]
    check(run.call(["mosquitto_sub"] + where + ["-t", "$SYS/broker/version", "-C", 1]), "no word of the broker")
    # Each listener has told that it is there by getting what is said again and again.
    watcher.subscribe(b"t/first", 0)
    wait_until(lambda: (watcher.publish(b"t/first", b"-"), all("t/first" in each.output() for each in listeners))[1],
               "all listen", pause=0.05)
    lines = run.file("lines", "".join("line %d\n" % index for index in range(30)))
    with open(lines) as file:
        run.call(["mosquitto_pub"] + where + ["-t", "t/lines", "-l", "-q", 1], stdin=file)
    outs = [each.finish() for each in listeners]
    for out in outs:
        got = [line for line in out.splitlines() if line.startswith("t/lines")]
        check_equal(got, ["t/lines line %d" % index for index in range(len(got))], "what was heard")
        check(got, "nothing was heard")
    broker.end()
    return True


@suite.case
def killed(run):
    broker = Broker(run)
    clients = [broker.client("k%d" % index) for index in range(4)] + [broker.by_unix("k9")]
    for client in clients:
        client.subscribe(b"k", 1)
    clients[0].publish(b"k", b"last", 1)
    for client in clients:
        client.message()
        client.ping()
    return run.end_or_kill(broker.process, signal.SIGKILL, broker.port, [client.conn for client in clients])


if __name__ == "__main__":
    suite.main()
