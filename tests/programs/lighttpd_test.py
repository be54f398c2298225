#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""lighttpd: files, uploads, a proxied server of our own, and PHP by FastCGI (php-fpm, on a ring as well)."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import glob
import os
import signal
import socket

from harness import Skipped, Suite, check, check_ended, check_equal, in_threads, read_exactly
from web import Backend, Client, content_of, ten_go_away

suite = Suite("lighttpd", needs=["lighttpd"])

CONFIG = """
server.document-root = "%(dir)s/files"
server.bind = "%(address)s"
server.port = %(port)d
server.errorlog = "%(dir)s/error.log"
server.pid-file = "%(dir)s/lighttpd.pid"
server.upload-dirs = ( "%(dir)s" )
server.event-handler = "linux-sysepoll"
server.max-keep-alive-requests = 100000
server.max-keep-alive-idle = 60
server.max-request-size = 65536
server.feature-flags = ( "server.graceful-shutdown-timeout" => 5 )
mimetype.assign = ( ".html" => "text/html", "" => "application/octet-stream" )
server.modules += ( "mod_access", "mod_proxy", "mod_fastcgi", "mod_cgi", "mod_redirect" )
url.access-deny = ( "~" )
cgi.assign = ( ".cgi" => "" )
$HTTP["url"] =~ "^/redirected/" { url.redirect = ( "" => "/elsewhere" ) }
$HTTP["url"] =~ "^/proxied/" {
    proxy.server = ( "" => (( "host" => "%(address)s", "port" => %(backend)d )))
    %(proxied)s
}
%(more)s
"""
FASTCGI = """fastcgi.server = ( ".php" => (( "socket" => "%(dir)s/php.sock", "check-local" => "enable" )))
$HTTP["url"] =~ "^/streamed" { server.stream-response-body = 2 server.stream-request-body = 2 }
"""
FPM = """[global]
error_log = %(dir)s/fpm.log
daemonize = no
[www]
listen = %(dir)s/php.sock
pm = static
pm.max_children = 3
clear_env = no
"""


class Server:
    def __init__(self, run, php=False, proxied="", more="", quick=False):
        self.run, self.port, self.backend = run, run.free_port(), Backend(suite.address)
        self.settings = {"dir": run.directory, "address": suite.address, "port": self.port, "proxied": proxied,
                         "backend": self.backend.port, "more": more}
        os.mkdir(os.path.join(run.directory, "files"))
        for size in (0, 1, 100, 5000, 100000, 3000000):
            run.file("files/%d" % size, content_of(size))
        self.fpm = None
        if php:
            programs = sorted(glob.glob("/usr/sbin/php-fpm*"))
            if not programs:
                raise Skipped("php-fpm is not installed")
            run.file("fpm.conf", FPM % self.settings)
            run.file("files/echo.php", PHP)
            run.file("files/streamed.php", PHP)
            self.settings["more"] += FASTCGI % self.settings
            self.fpm = run.start([programs[-1], "-n", "-R", "-F", "-y", os.path.join(run.directory, "fpm.conf")], name="fpm")
            run.wait_for_listener(self.fpm, os.path.join(run.directory, "php.sock"))
        run.file("lighttpd.conf", CONFIG % self.settings)
        self.process = run.start(["lighttpd", "-D", "-f", os.path.join(run.directory, "lighttpd.conf")])
        run.wait_for_listener(self.process, self.port)
        run.expect_ring(self.process, cqes=0 if quick else 1)

    def client(self):
        return Client(self.run, self.port)

    def end(self, number=signal.SIGTERM):
        status = self.process.end(number)
        self.run.check_port_is_free(self.port, reuse=True)
        if self.fpm:
            self.fpm.end(signal.SIGTERM, 0)
        self.backend.end()
        return status


PHP = """<?php
header("Content-Type: text/plain");
if (isset($_GET["bytes"])) {
    for ($left = (int)$_GET["bytes"]; $left > 0; $left -= 1000) { echo str_repeat("b", min(1000, $left)); flush(); }
} else {
    echo $_SERVER["REQUEST_METHOD"], " ", $_SERVER["QUERY_STRING"], " ", md5(file_get_contents("php://input"));
}
"""


@suite.case
def files(run):
    server, seen = Server(run), []
    client = server.client()
    for _ in range(20):
        for size in (0, 1, 100, 5000, 100000):
            status, body = client.ask("GET", "/%d" % size)
            check(status == 200 and body == content_of(size), "the file of %d bytes is another", size)
            seen.append(client.ask("HEAD", "/%d" % size))
    status, body = client.ask("GET", "/3000000")
    check(status == 200 and body == content_of(3000000), "the big file is another")
    tag = client.headers["etag"]
    seen += [client.ask("GET", "/3000000", headers=["If-None-Match: " + tag])[0],
             client.ask("GET", "/3000000", headers=["Range: bytes=1000-1099"]), client.ask("GET", "/none")[0],
             client.ask("GET", "/x~")[0], client.ask("GET", "/redirected/x")[0], client.ask("OPTIONS", "*")[0],
             server.client().ask("POST", "/100", body=b"x" * 1000)[0]]
    # Requests one behind the other, and an end that the client asks for.
    client.conn.sendall(b"".join(client.pack("GET", "/%d" % (1 if index & 1 else 5000)) for index in range(60)))
    for index in range(60):
        size = 1 if index & 1 else 5000
        check_equal(client.answer(), (200, content_of(size)), "answer %d" % index)
    seen += [client.ask("GET", "/100", headers=["Connection: close"]), check_ended(client.conn)]
    # A request that comes byte by byte, one that is none, and one that never ends.
    client = server.client()
    for byte in client.pack("GET", "/100"):
        client.conn.sendall(bytes([byte]))
    seen.append(client.answer())
    client.conn.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
    seen += [client.answer()[0], check_ended(client.conn)]
    half = server.client()
    half.conn.sendall(b"GET /100 HTTP/1.1\r\nHost:")
    half.conn.shutdown(socket.SHUT_WR)
    seen.append(check_ended(half.conn))
    half = server.client()
    half.send("GET", "/5000")
    half.conn.shutdown(socket.SHUT_WR)
    check_equal(half.answer(), (200, content_of(5000)), "the answer after the client's end")
    server.end()
    return seen


@suite.case
def proxied(run):
    seen = []
    for index, how in enumerate(("", "server.stream-response-body = 1 server.stream-request-body = 1",
                                 "server.stream-response-body = 2 server.stream-request-body = 2")):
        os.makedirs(os.path.join(run.directory, "files"), exist_ok=True)
        os.rename(os.path.join(run.directory, "files"), os.path.join(run.directory, "files.%d" % index))
        server = Server(run, proxied=how)
        client = server.client()
        for size in [0, 1, 100, 3000, 9000, 70000, 700000, 20, 2000000] + [50] * 30:
            seen.append(client.ask("POST", "/proxied/echo", body=content_of(size)) == (200, content_of(size)))
            seen.append(client.ask("GET", "/proxied/bytes/%d" % size) == (200, content_of(size)))
        # A body in chunks, one that waits for the server's word, and clients that go away in the middle.
        chunks = [content_of(size) for size in (1, 100, 9000, 30000)]
        client.send("POST", "/proxied/echo", headers=["Transfer-Encoding: chunked"])
        for chunk in chunks + [b""]:
            client.conn.sendall(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        seen.append(client.answer() == (200, b"".join(chunks)))
        client.conn.sendall(client.pack("POST", "/proxied/echo", content_of(9000), ["Expect: 100-continue"]))
        check_equal(client.reader.readline()[9:12], b"100", "the word to go on")
        client.reader.readline()
        client.conn.sendall(content_of(9000))
        seen.append(client.answer() == (200, content_of(9000)))
        ten_go_away(server)
        check_equal(client.ask("GET", "/100"), (200, content_of(100)), "the answer to one that stayed")
        server.end()
    return seen


@suite.case
def php(run):
    server, seen = Server(run, php=True), []

    def talk(index):
        client, got = server.client(), []
        for name in ("echo", "streamed"):
            for size in (0, 1, 100, 9000, 70000, 300000):
                got.append(client.ask("POST", "/%s.php?n=%d" % (name, index), body=content_of(size)))
                status, body = client.ask("GET", "/%s.php?bytes=%d" % (name, size))
                got.append((status, len(body), body.strip(b"b")))
        return got
    for each in in_threads([lambda index=index: talk(index) for index in range(8)]):
        seen.append(each)
    client = server.client()
    for index in range(60):
        seen.append(client.ask("GET", "/echo.php?%d" % index))
    seen.append(client.ask("GET", "/none.php")[0])
    # One that goes away while the script writes: the child goes on with the next.
    for _ in range(5):
        other = server.client()
        other.send("GET", "/streamed.php?bytes=20000000")
        read_exactly(other.conn, 1000)
        other.go()
    for index in range(10):
        seen.append(client.ask("GET", "/echo.php?%d" % index))
    server.end()
    return seen


@suite.case
def cgi(run):
    server, seen = Server(run, quick=True), []
    script = run.file("files/echo.cgi", "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n"
                      "printf '%s %s ' \"$REQUEST_METHOD\" \"$QUERY_STRING\"\nexec cat\n")
    os.chmod(script, 0o755)
    script = run.file("files/ends.cgi", "#!/bin/sh\nexit 1\n")
    os.chmod(script, 0o755)
    client = server.client()
    for size in (0, 1, 5000, 200000, 7):
        seen.append(client.ask("POST", "/echo.cgi?%d" % size, body=content_of(size)))
        seen.append(client.ask("GET", "/echo.cgi?get"))
        seen.append(client.ask("GET", "/ends.cgi")[0])
    seen.append(in_threads([lambda: server.client().ask("POST", "/echo.cgi?many", body=content_of(3000))] * 6))
    server.end()
    return seen


@suite.case
def many_clients(run):
    server = Server(run)

    def talk(index):
        client = server.client()
        for number in range(40):
            size = (0, 1, 100, 5000)[(number + index) % 4]
            check_equal(client.ask("GET", "/%d" % size), (200, content_of(size)), "the file")
            check_equal(client.ask("POST", "/proxied/echo", body=content_of(size)), (200, content_of(size)), "the echo")
        return True
    seen = in_threads([lambda index=index: talk(index) for index in range(24)])
    server.end()
    return seen


@suite.case
def ends(run):
    seen = []
    for index, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGKILL)):
        if index:
            os.rename(os.path.join(run.directory, "files"), os.path.join(run.directory, "files.%d" % index))
        server = Server(run, quick=True)
        clients = [server.client() for _ in range(4)]
        for client in clients:
            seen.append(client.ask("GET", "/100")[0])
        busy = server.client()
        if number == signal.SIGINT:
            # A graceful end: what was begun is served.
            busy.conn.sendall(busy.pack("POST", "/proxied/echo", content_of(1000)) + content_of(1000)[:500])
            client.ask("GET", "/1")
            server.process.send_signal(number)
            busy.conn.sendall(content_of(1000)[500:])
            check_equal(busy.answer(), (200, content_of(1000)), "the answer to what was begun")
            seen.append(check_ended(busy.conn))
            server.end(number)
        elif number == signal.SIGKILL:
            run.look(server.process.pid)
            run.kill_and_rebind(server.process, server.port, [client.conn for client in clients])
        else:
            server.end(number)
        if number != signal.SIGKILL:
            seen += [check_ended(client.conn) for client in clients]
    return seen


if __name__ == "__main__":
    suite.main()
