# SPDX-License-Identifier: MIT
"""What the tests of web servers share: HTTP/1.1 as it is on the wire, and a server behind a proxy."""

import random
import socketserver
import threading

from harness import check, check_equal, read_exactly


def content_of(size):
    return random.Random(size).randbytes(size)


class Backend(socketserver.ThreadingTCPServer):
    """Echoes what is sent, or answers as many bytes as are asked for, in parts."""

    daemon_threads, block_on_close, allow_reuse_address, request_queue_size = True, False, True, 128

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self):
            while True:
                line, size, body = self.rfile.readline(), 0, b""
                if not line:
                    return
                path = line.split()[1].decode()
                while line not in (b"\r\n", b""):
                    line = self.rfile.readline().lower()
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                    elif line.startswith(b"transfer-encoding:"):
                        size = None
                while size is None:
                    part = int(self.rfile.readline(), 16)
                    body += self.rfile.read(part)
                    self.rfile.readline()
                    size = 0 if not part else None
                body += self.rfile.read(size)
                if "/bytes/" in path:
                    body = content_of(int(path.rsplit("/", 1)[1]))
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                for at in range(0, len(body), 7000):
                    self.wfile.write(body[at:at + 7000])

    def handle_error(self, request, client_address):
        pass  # A client that went away: the case itself tells if it should have.

    def __init__(self, address):
        super().__init__((address, 0), self.Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.port = self.server_address[1]

    def end(self):
        self.shutdown()
        self.server_close()


class Client:
    def __init__(self, run, port):
        self.conn = run.connect(port)
        self.reader = self.conn.makefile("rb")

    @staticmethod
    def pack(method, path, body=None, headers=()):
        lines = [method + " " + path + " HTTP/1.1", "Host: here"] + list(headers)
        if body is not None and "Transfer-Encoding: chunked" not in headers:
            lines.append("Content-Length: %d" % len(body))
        return "\r\n".join(lines + ["", ""]).encode()

    def send(self, method, path, body=None, headers=()):
        self.conn.sendall(self.pack(method, path, body, headers) + (body or b""))

    def answer(self, head=False):
        """(status, body); the headers are in self.headers."""
        line, self.headers = self.reader.readline(), {}
        check(line.startswith(b"HTTP/1."), "an answer that begins with %r", line)
        status = int(line.split()[1])
        while True:
            line = self.reader.readline()
            if line in (b"\r\n", b""):
                break
            name, value = line.decode("latin-1").split(":", 1)
            self.headers[name.lower()] = value.strip()
        if status == 100:
            return self.answer(head)
        if head or status in (204, 304):
            return status, b""
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(self.reader.readline(), 16)
                body += self.reader.read(size)
                check_equal(self.reader.readline(), b"\r\n", "the end of a chunk")
                if not size:
                    return status, body
        return status, self.reader.read(int(self.headers["content-length"]))

    def go(self):
        self.reader.close()
        self.conn.close()

    def ask(self, *words, **more):
        self.send(*words, **more)
        return self.answer(head=words[0] == "HEAD")


def ten_go_away(server):
    """In the middle of an answer that is proxied, and behind a request that is."""
    for going in range(10):
        other = server.client()
        other.send("GET", "/proxied/bytes/2000000")
        read_exactly(other.conn, 1000)
        other.go()
        other = server.client()
        other.conn.sendall(other.pack("POST", "/proxied/echo", b"x" * 100000) + b"x" * (going * 5000))
        other.go()
