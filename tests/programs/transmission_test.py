#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""transmission-daemon: its RPC over evhttp, and the BitTorrent protocol in both directions
with a peer of our own. (It calls no peer on 127/8 itself, but takes connections from there.)"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import base64
import hashlib
import http.client
import json
import os
import random
import re
import signal
import struct

from harness import Suite, check, check_ended, check_equal, in_threads, read_exactly, wait_until

suite = Suite("transmission", needs=["transmission-daemon"], library="libevent")
PIECE, BLOCK = 32768, 16384


def bencode(value):
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"


class Torrent:
    def __init__(self, name, content):
        self.name, self.content = name, content
        self.pieces = [content[at:at + PIECE] for at in range(0, len(content), PIECE)]
        info = {"name": name, "length": len(content), "piece length": PIECE, "private": 1,
                "pieces": b"".join(hashlib.sha1(piece).digest() for piece in self.pieces)}
        self.hash = hashlib.sha1(bencode(info)).digest()
        self.file = bencode({"info": info})


class Peer:
    """One connection of the peer protocol, in the clear."""

    CHOKE, UNCHOKE, INTERESTED, HAVE, BITFIELD, REQUEST, PIECE = 0, 1, 2, 4, 5, 6, 7

    def __init__(self, daemon, torrent, number):
        self.torrent = torrent
        # It tells peers apart by their addresses alone.
        self.conn = daemon.run.connect(daemon.peers, source="127.0.0.%d" % (10 + number))
        self.conn.sendall(b"\x13BitTorrent protocol" + bytes(8) + torrent.hash + b"-RP0001-%012d" % number)
        head = read_exactly(self.conn, 68)
        check_equal([head[:20], head[28:48]], [b"\x13BitTorrent protocol", torrent.hash], "the handshake")
        check(head[48:].startswith(b"-TR3000-"), "the peer calls itself %r", head[48:])

    def send(self, kind, body=b""):
        self.conn.sendall(struct.pack(">IB", 1 + len(body), kind) + body)

    def receive(self, *kinds):
        """The next message of one of these kinds; others are left out."""
        while True:
            size = struct.unpack(">I", read_exactly(self.conn, 4))[0]
            if size == 0:
                continue
            message = read_exactly(self.conn, size)
            if message[0] in kinds:
                return message[0], message[1:]

    def download(self):
        """All of it, as a stranger who has nothing; returns the bytes."""
        have = self.receive(self.BITFIELD)[1]
        count = len(self.torrent.pieces)
        check_equal("".join("{:08b}".format(byte) for byte in have)[:count], "1" * count, "the bitfield")
        self.send(self.INTERESTED)
        self.receive(self.UNCHOKE)
        wanted = [(number, at, min(BLOCK, len(piece) - at)) for number, piece in enumerate(self.torrent.pieces)
                  for at in range(0, len(piece), BLOCK)]
        got = bytearray(len(self.torrent.content))
        asked = 0
        for done in range(len(wanted)):
            while asked < len(wanted) and asked < done + 16:
                self.send(self.REQUEST, struct.pack(">III", *wanted[asked]))
                asked += 1
            body = self.receive(self.PIECE)[1]
            number, at = struct.unpack(">II", body[:8])
            got[number * PIECE + at:number * PIECE + at + len(body) - 8] = body[8:]
        return bytes(got)

    def serve(self):
        """Has everything, and answers requests until it has given all of it."""
        count = len(self.torrent.pieces)
        bits = "".join("1" * count).ljust((count + 7) // 8 * 8, "0")
        self.send(self.BITFIELD, int(bits, 2).to_bytes(len(bits) // 8, "big"))
        self.receive(self.INTERESTED)
        self.send(self.UNCHOKE)
        given = {}
        while sum(given.values()) < len(self.torrent.content):
            number, at, size = struct.unpack(">III", self.receive(self.REQUEST)[1])
            start = number * PIECE + at
            self.send(self.PIECE, struct.pack(">II", number, at) + self.torrent.content[start:start + size])
            given[start] = size


class Daemon:
    def __init__(self, run):
        self.run = run
        self.rpc, self.peers = run.free_port(), run.free_port()
        self.downloads = os.path.join(run.directory, "downloads")
        home = os.path.join(run.directory, "config")
        for path in (self.downloads, home):
            if not os.path.isdir(path):
                os.mkdir(path)
        with open(os.path.join(home, "settings.json"), "w") as file:
            json.dump({"rpc-host-whitelist-enabled": False, "rpc-whitelist-enabled": False, "encryption": 0,
                       "message-level": 2, "cache-size-mb": 1, "speed-limit-up-enabled": False}, file)
        self.process = run.start(["transmission-daemon", "-f", "-g", home, "-p", self.rpc, "-P", self.peers,
                                  "-i", suite.address, "-r", suite.address, "-w", self.downloads, "-T", "-O", "-Y",
                                  "-M", "-C", "-et", "--no-utp"])
        run.wait_for_listener(self.process, self.rpc)
        run.wait_for_listener(self.process, self.peers)
        run.expect_ring(self.process)

    def call(self, conn, method, **arguments):
        """One RPC over a kept connection; a session id is asked for once."""
        body = json.dumps({"method": method, "arguments": arguments})
        while True:
            headers = {"X-Transmission-Session-Id": getattr(self, "session", "")}
            conn.request("POST", "/transmission/rpc", body, headers)
            reply = conn.getresponse()
            text = reply.read()
            if reply.status != 409:
                break
            self.session = reply.getheader("X-Transmission-Session-Id")
        check_equal(reply.status, 200, "the status")
        answer = json.loads(text)
        check_equal(answer["result"], "success", "the result of " + method)
        return answer["arguments"]

    def http(self):
        return http.client.HTTPConnection(suite.address, self.rpc, timeout=30)

    def add(self, conn, torrent, **more):
        added = self.call(conn, "torrent-add", metainfo=base64.b64encode(torrent.file).decode(), **more)
        return added["torrent-added"]["id"]

    def wait_for_status(self, conn, number, status):
        """4: downloads; 6: seeds."""
        def is_there():
            state = self.call(conn, "torrent-get", ids=[number], fields=["status", "error", "errorString"])["torrents"][0]
            check_equal([state["error"], state["errorString"]], [0, ""], "the error")
            return state["status"] == status
        wait_until(is_there, "the torrent has status %d" % status, pause=0.05)


@suite.case
def settings_by_rpc(run):
    daemon, seen = Daemon(run), []
    conn = daemon.http()
    seen.append(re.match(r"[0-9.]+", daemon.call(conn, "session-get")["version"]).group(0))
    daemon.call(conn, "session-set", **{"speed-limit-down": 12345, "peer-limit-global": 77})
    settings = daemon.call(conn, "session-get")
    seen.append([settings["speed-limit-down"], settings["peer-limit-global"]])
    seen.append(daemon.call(conn, "torrent-get", fields=["id"]))
    seen.append(daemon.call(conn, "session-stats")["torrentCount"])
    # Five hundred on one connection; four clients with a connection for each.
    for _ in range(500):
        check_equal(daemon.call(conn, "session-get", fields=["version"])["version"], settings["version"], "the version")

    def one():
        for _ in range(50):
            each = daemon.http()
            daemon.call(each, "session-stats")
            each.close()
    in_threads([one] * 4)
    for path in ("/nothing", "/transmission/web/", "/transmission/web/nothing"):
        conn.request("GET", path)
        reply = conn.getresponse()
        body = reply.read()
        seen.append([path, reply.status, len(body) > 0])
    daemon.process.end(signal.SIGTERM, 0)
    seen.append(os.path.exists(os.path.join(run.directory, "config", "settings.json")))
    return seen


@suite.case(timeout=90)
def downloads_from_a_peer(run):
    generator = random.Random(suite.seed)
    torrent = Torrent("taken", generator.randbytes(3_000_000 + 777))
    daemon = Daemon(run)
    conn = daemon.http()
    number = daemon.add(conn, torrent)
    daemon.wait_for_status(conn, number, 4)
    peer = Peer(daemon, torrent, 1)
    peer.serve()
    daemon.wait_for_status(conn, number, 6)
    with open(os.path.join(daemon.downloads, "taken"), "rb") as file:
        check(file.read() == torrent.content, "the file differs")
    left = daemon.call(conn, "torrent-get", ids=[number], fields=["leftUntilDone", "haveValid"])["torrents"][0]
    daemon.process.end(signal.SIGTERM, 0)
    return [left, check_ended(peer.conn)]


@suite.case(timeout=90)
def uploads_to_four_peers(run):
    generator = random.Random(suite.seed + 1)
    torrent = Torrent("given", generator.randbytes(2_000_000 + 5))
    daemon = Daemon(run)
    with open(os.path.join(daemon.downloads, "given"), "wb") as file:
        file.write(torrent.content)
    conn = daemon.http()
    number = daemon.add(conn, torrent)
    daemon.wait_for_status(conn, number, 6)

    def one(which):
        peer = Peer(daemon, torrent, which)
        check(peer.download() == torrent.content, "peer %d has other bytes", which)
        peer.conn.close()
        return which

    who = in_threads([lambda which=which: one(which) for which in range(4)])
    daemon.call(conn, "torrent-remove", ids=[number], **{"delete-local-data": True})
    wait_until(lambda: not os.path.exists(os.path.join(daemon.downloads, "given")), "the data is deleted")
    daemon.process.end(signal.SIGTERM, 0)
    run.check_port_is_free(daemon.rpc, reuse=True)
    return who


if __name__ == "__main__":
    suite.main()
