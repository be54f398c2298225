#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""sslsplit: a listener, TLS bufferevents to both sides, and threads with bases of their own,
between a client and a server of ours."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import random
import re
import signal
import socket
import ssl
import threading

from harness import Suite, check, check_equal, in_threads, read_exactly

suite = Suite("sslsplit", needs=["sslsplit", "openssl"], library="libevent", plain=True)


def certificate(run, name, *options):
    key, cert = os.path.join(run.directory, name + ".key"), os.path.join(run.directory, name + ".crt")
    run.call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", 30,
              "-subj", "/CN=" + name] + list(options), shim=False)
    return key, cert


class Server:
    """Answers each message of a length and a body by the same in upper case; ends at length 0."""

    def __init__(self, run, context):
        self.context = context
        self.listener = socket.create_server((suite.address, 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.listener.settimeout(60)
        run.sockets.append(self.listener)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                conn = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(conn,), daemon=True).start()

    def serve(self, conn):
        conn.settimeout(60)
        try:
            conn = self.context.wrap_socket(conn, server_side=True)
            while True:
                size = int.from_bytes(read_exactly(conn, 4), "big")
                if size == 0:
                    break
                body = read_exactly(conn, size)
                conn.sendall(size.to_bytes(4, "big") + body.upper())
            conn = conn.unwrap()
        except (OSError, AssertionError):
            pass
        conn.close()


class Client:
    def __init__(self, run, port, context):
        self.conn = context.wrap_socket(run.connect(port), server_hostname="server.example")

    def ask(self, body):
        self.conn.sendall(len(body).to_bytes(4, "big") + body)
        got = read_exactly(self.conn, 4 + len(body))
        check(got == len(body).to_bytes(4, "big") + body.upper(), "another answer to %d bytes", len(body))

    def end(self):
        """Both sides' orderly end."""
        self.conn.sendall(bytes(4))
        left = self.conn.recv(1)
        self.conn.close()
        return left


class Split:
    def __init__(self, run):
        self.run = run
        key, cert = certificate(run, "authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        server_key, server_cert = certificate(run, "server.example", "-addext", "subjectAltName=DNS:server.example")
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(server_cert, server_key)
        self.context = ssl.create_default_context(cafile=cert)
        self.context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        self.server, self.port = Server(run, server_context), run.free_port()
        # It gives up root for nobody otherwise, who cannot write here.
        user = ["-u", "root"] if os.getuid() == 0 else []
        self.process = run.start(["sslsplit", "-D", "-k", key, "-c", cert] + user +
                                 ["ssl", suite.address, self.port, suite.address, self.server.port])
        run.wait_for_listener(self.process, self.port)
        # A parent that opens files for it, and the child that does the work.
        self.worker = [pid for pid in run.family(self.process.pid) if pid != self.process.pid][0]
        run.expect_ring()

    def client(self):
        return Client(self.run, self.port, self.context)

    def end(self):
        self.run.look(self.worker)
        self.process.end(signal.SIGTERM)


@suite.case(timeout=90)
def certificates_that_it_makes(run):
    split = Split(run)

    def one(number):
        generator, count = random.Random(suite.seed * 100 + number), 0
        for _ in range(5):
            client = split.client()
            for _ in range(20):
                client.ask(generator.randbytes(generator.choice((1, 10, 1000, 16000, 100000))))
                count += 1
            check_equal(client.end(), b"", "the end")
        return count
    counts = in_threads([lambda number=number: one(number) for number in range(8)])
    idle = [split.client() for _ in range(30)]
    for client in idle:
        client.ask(b"still there")
    big = split.client()
    big.ask(bytes(random.Random(1).choices(range(97, 123), k=3_000_000)))
    for client in idle[::2]:
        check_equal(client.end(), b"", "the end")
    method = re.search(r"Using libevent backend '(\w+)'", split.process.errors()).group(1)
    check_equal(method, "io_uring" if run.mode in ("event", "built") else "epoll", "the backend that it names")
    split.end()
    run.check_port_is_free(split.port, reuse=True)
    return [counts, len(idle)]


if __name__ == "__main__":
    suite.main()
