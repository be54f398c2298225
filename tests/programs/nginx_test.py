#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""nginx: a master and two workers, static files, a proxy, reloads under load."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import random
import re
import select
import signal
import socket
import ssl
import threading

from harness import (Failure, Skipped, Suite, check, check_ended, check_equal, find_program, in_threads, read_exactly,
                     wait_until)

suite = Suite("nginx", needs=["nginx"])

SIZES = [0, 1, 2, 100, 1023, 4095, 4096, 4097, 8192, 16384, 65535, 65536, 100003, 1 << 20, 10 << 20]

CONFIG = """
daemon %(daemon)s; master_process on; user root; worker_processes %(workers)s;
pid %(dir)s/nginx.pid; error_log %(dir)s/error.log info; worker_shutdown_timeout 20s;
%(main)s
events { use epoll; worker_connections 600; %(events)s }
http {
    access_log off; server_tokens off; types { } default_type application/octet-stream;
    client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/proxy; fastcgi_temp_path %(dir)s/fastcgi;
    uwsgi_temp_path %(dir)s/uwsgi; scgi_temp_path %(dir)s/scgi;
    keepalive_requests 100000; keepalive_timeout 60s; lingering_timeout 1s; client_max_body_size 64m; %(http)s
    upstream files { server %(address)s:%(port)s; keepalive 16; }
    server {
        listen %(address)s:%(port)s %(listen)s; root %(dir)s/files; etag off;
        location / { }
        location = /status { stub_status; }
        location = /generation { return 200 "%(generation)s"; }
        location /moved { return 301 /f1; }
        location /proxy/ { proxy_pass http://files/; proxy_http_version 1.1; proxy_set_header Connection ""; }
        location /unbuffered/ { proxy_pass http://files/; proxy_buffering off; }
        location /refused/ { proxy_pass http://%(address)s:%(unused)s/; }
        location /upload/ { dav_methods PUT DELETE; create_full_put_path on; }
        location /limited/ { limit_rate 200k; alias %(dir)s/files/; }
    }
    %(servers)s
}
"""


class Server:
    """An nginx with a directory of its own; `settings` fill the holes of CONFIG."""

    def __init__(self, run, expect=True, **settings):
        self.run, self.dir = run, os.path.join(run.directory, "nginx%d" % len(run.processes))
        os.makedirs(os.path.join(self.dir, "files"))
        self.port = run.free_port()
        self.settings = {"dir": self.dir, "port": self.port, "address": suite.address, "unused": run.free_port(),
                         "workers": 2, "main": "", "events": "", "http": "", "listen": "", "servers": "",
                         "generation": "0", "daemon": "off"}
        self.settings.update(settings)
        self.files = make_files(os.path.join(self.dir, "files"))
        self.configure()
        self.process = run.start(["nginx", "-c", self.config, "-e", os.path.join(self.dir, "error.log")], name="nginx")
        self.master = self.process.pid
        if self.settings["daemon"] == "on":
            self.process.finish(0)
            self.master = wait_until(self.pid_from_file, "the daemon has written its pid")
        else:
            run.wait_for_listener(self.process, self.port)
        wait_until(lambda: len(self.workers()) == self.settings["workers"], "the workers have started")
        if expect:
            # The master only waits for signals; each worker has a loop.
            run.expect_ring(at_least_rings=1)

    def configure(self, **settings):
        self.settings.update(settings)
        self.config = os.path.join(self.dir, "nginx.conf")
        with open(self.config, "w") as file:
            file.write(CONFIG % self.settings)

    def workers(self):
        """The workers that take connections; one that shuts down says so in its title."""
        found = []
        for pid in self.run.family(self.master)[1:]:
            try:
                with open("/proc/%d/cmdline" % pid) as file:
                    title = file.read()
            except OSError:
                continue
            if title.startswith("nginx: worker process") and "shutting down" not in title:
                found.append(pid)
        return found

    def pid_from_file(self):
        try:
            with open(os.path.join(self.dir, "nginx.pid")) as file:
                return int(file.read() or 0)
        except OSError:
            return 0

    def log(self):
        with open(os.path.join(self.dir, "error.log")) as file:
            return file.read()

    def end(self, number=signal.SIGQUIT):
        self.process.end(number, 0)
        bad = re.findall(r".*\[(?:emerg|alert|crit)\].*", self.log())
        check(not bad, "nginx complained: %s", bad[:3])
        self.run.check_port_is_free(self.port, reuse=True)


CONTENTS = {}


def make_files(directory):
    if not CONTENTS:
        generator = random.Random(suite.seed)
        CONTENTS.update({"f%d" % size: generator.randbytes(size) for size in SIZES})
    for name, content in CONTENTS.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
    return CONTENTS


class Http:
    """A small HTTP/1.1 client that says exactly what came over the wire."""

    def __init__(self, conn):
        self.conn, self.reader = conn, conn.makefile("rb", buffering=1 << 16)

    @staticmethod
    def pack(path, method="GET", body=b"", **headers):
        lines = ["%s %s HTTP/1.1" % (method, path), "Host: test"]
        lines += ["%s: %s" % (name.replace("_", "-"), value) for name, value in headers.items()]
        if body:
            lines.append("Content-Length: %d" % len(body))
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    def send(self, path, **options):
        self.conn.sendall(self.pack(path, **options))

    def reply(self, method="GET"):
        """(status, headers, body); EOFError when the peer closed before the first byte."""
        line = self.reader.readline()
        if not line:
            raise EOFError("closed before the reply")
        status, headers = int(line.split()[1]), {}
        while True:
            line = self.reader.readline()
            if line == b"\r\n":
                break
            if not line.endswith(b"\r\n"):
                raise Failure("the reply's head ends early")
            name, value = line.decode("latin-1").split(":", 1)
            headers[name.lower()] = value.strip()
        if method == "HEAD" or status in (204, 304):
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(self.reader.readline(), 16)
                body += self.reader.read(size + 2)[:-2]
                if not size:
                    return status, headers, body
        if "content-length" not in headers:
            return status, headers, self.reader.read()
        size = int(headers["content-length"])
        body = self.reader.read(size)
        if len(body) != size:
            raise Failure("the body ends after %d of %d bytes" % (len(body), size))
        return status, headers, body

    def __call__(self, path, method="GET", **options):
        self.send(path, method=method, **options)
        return self.reply(method)

    def close(self):
        self.reader.close()
        self.conn.close()


def fetch_all(run, server, prefix="/", **headers):
    client = None
    for name, content in server.files.items():
        client = client or Http(run.connect(server.port))
        status, _, body = client(prefix + name, **headers)
        check_equal(status, 200, "the status of " + name)
        check(body == content, "%s%s differs", prefix, name)
        if headers:
            check_equal(check_ended(client.conn), "fin", "the end")
            client.close()
            client = None
    return len(server.files)


def static_files_with(run, **settings):
    server = Server(run, **settings)
    seen = in_threads([lambda: fetch_all(run, server) for _ in range(4)] +
                      [lambda: fetch_all(run, server, Connection="close") for _ in range(4)])
    server.end()
    return seen


@suite.case
def static_files_by_sendfile(run):
    return static_files_with(run, http="sendfile on; tcp_nopush on;")


@suite.case
def static_files_by_write(run):
    return static_files_with(run, http="sendfile off; output_buffers 2 32k;")


@suite.case
def static_files_from_threads(run):
    """A thread pool reads; its completions come through an eventfd."""
    return static_files_with(run, http="aio threads; sendfile off;")


@suite.case
def listener_per_worker_and_accept_mutex(run):
    return [static_files_with(run, listen="reuseport"),
            static_files_with(run, events="accept_mutex on; accept_mutex_delay 20ms;", http="sendfile on;"),
            static_files_with(run, events="multi_accept on;", http="sendfile on;")]


@suite.case
def requests_of_all_kinds(run):
    server, seen = Server(run), []
    client = Http(run.connect(server.port))

    def note(reply, *names):
        seen.append([reply[0], [reply[1].get(name) for name in names], len(reply[2]), reply[2][:20]])

    note(client("/f4096", method="HEAD"), "content-length")
    note(client("/none"), "content-type")
    note(client("/f100003", Range="bytes=5-9"), "content-range")
    note(client("/f100003", Range="bytes=-7"), "content-range")
    note(client("/f100003", Range="bytes=0-0,50000-50009"))
    note(client("/f100003", Range="bytes=200000-"), "content-range")
    moved = client("/moved")
    seen.append([moved[0], re.sub(r":\d+", "", moved[1]["location"])])
    modified = client("/f1")[1]["last-modified"]
    note(client("/f1", If_Modified_Since=modified))
    note(client("/f1", method="POST", body=b"x" * 10))
    note(client("/upload/new", method="PUT", body=b"y" * 3000000))
    note(client("/upload/new"))
    note(client("/upload/new", method="DELETE"))
    note(client("/refused/x"))
    check_equal(client("/f2")[0], 200, "the status")
    # A pipeline of a hundred, with all sizes, in one write.
    names = [name for name in server.files for _ in range(7) if len(server.files[name]) <= 65536]
    data = b"".join(Http.pack("/" + name) for name in names)
    in_threads([lambda: client.conn.sendall(data),
                lambda: [check(client.reply()[2] == server.files[name], "%s differs", name) for name in names]])
    # Byte by byte; then garbage; then a client that says nothing more.
    for byte in Http.pack("/f100"):
        client.conn.sendall(bytes([byte]))
    note(client.reply())
    bad = Http(run.connect(server.port))
    bad.conn.sendall(b"NONSENSE\r\n\r\n")
    note(bad.reply())
    seen.append(check_ended(bad.conn))
    half = Http(run.connect(server.port))
    half.send("/f65536", Connection="close")
    half.conn.shutdown(socket.SHUT_WR)
    note(half.reply())
    seen.append(check_ended(half.conn))
    server.end()
    return seen


@suite.case
def proxied(run):
    """nginx is its own upstream: outgoing connections, kept alive and not."""
    server = Server(run, http="proxy_buffers 4 8k; proxy_busy_buffers_size 16k; proxy_max_temp_file_size 1m;")
    seen = in_threads([lambda: fetch_all(run, server, "/proxy/") for _ in range(3)] +
                      [lambda: fetch_all(run, server, "/unbuffered/") for _ in range(2)] +
                      [lambda: fetch_all(run, server, "/proxy/", Connection="close") for _ in range(2)])
    client = Http(run.connect(server.port))
    seen.append(client("/refused/x")[0])
    server.end()
    return seen


@suite.case
def slow_readers_of_large_files(run):
    """Six clients that read ten megabytes with a small window, one that goes away,
    one that is limited by a timer, and a quick one beside them."""
    server = Server(run, http="sendfile on;")
    content = server.files["f%d" % (10 << 20)]

    def slow(path):
        conn = run.connect(server.port)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        conn.sendall(Http.pack(path, Connection="close"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_exactly(conn, 1)
        check(read_exactly(conn, len(content)) == content, "the content differs")
        return check_ended(conn)

    gone = Http(run.connect(server.port))
    gone.send("/f%d" % len(content))
    select.select([gone.conn], [], [], 10)
    gone.close()
    limited = Http(run.connect(server.port))
    limited.send("/limited/f%d" % 100003)

    def quick():
        client = Http(run.connect(server.port))
        for _ in range(300):
            check(client("/f100")[2] == server.files["f100"], "the small file differs")

    seen = in_threads([lambda: slow("/f%d" % len(content)) for _ in range(6)] + [quick])
    check(limited.reply()[2] == server.files["f100003"], "the limited file differs")
    server.end()
    return seen


@suite.case
def over_tls(run):
    """OpenSSL reads and writes the watched sockets itself."""
    if not find_program("openssl"):
        raise Skipped("openssl is not installed")
    key, certificate = os.path.join(run.directory, "key.pem"), os.path.join(run.directory, "cert.pem")
    run.call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", "/CN=test",
              "-keyout", key, "-out", certificate], shim=False)
    port = run.free_port()
    server = Server(run, servers="server { listen %s:%d ssl http2; root %s/files; ssl_certificate %s; "
                    "ssl_certificate_key %s; }" % (suite.address, port, "%(dir)s", certificate, key) %
                    {"dir": os.path.join(run.directory, "nginx%d" % len(run.processes))})
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False

    def fetch():
        conn = context.wrap_socket(run.connect(port))
        client = Http(conn)
        for name, content in server.files.items():
            check(client("/" + name)[2] == content, "%s differs", name)
        client.send("/f1", Connection="close")
        return [client.reply()[0], conn.version(), check_ended(conn)]

    seen = in_threads([fetch for _ in range(6)])
    server.end()
    return seen


@suite.case
def reload_under_load(run):
    """No request fails while the workers are replaced, four times. A connection
    that is kept alive may end between two requests (the client asks again, as
    HTTP says); one that is made for a request must be served."""
    server = Server(run)
    stop, counts = threading.Event(), []

    def close_each():
        done = 0
        while not stop.is_set():
            client = Http(run.connect(server.port))
            name = "f%d" % (100, 4096, 65536)[done % 3]
            client.send("/" + name, Connection="close")
            status, _, body = client.reply()
            check(status == 200 and body == server.files[name], "a request failed: status %d", status)
            client.close()
            run.sockets.remove(client.conn)
            done += 1
        counts.append(done)

    def keep_alive():
        client, done, again = Http(run.connect(server.port)), 0, 0
        while not stop.is_set():
            try:
                status, headers, body = client("/f4096")
                again = 0
            except (EOFError, ConnectionResetError, BrokenPipeError):
                check(again == 0, "a request failed on a new connection")
                client, again = Http(run.connect(server.port)), again + 1
                continue
            check(status == 200 and body == server.files["f4096"], "a request failed: status %d", status)
            if headers.get("connection") == "close":
                client = Http(run.connect(server.port))
            done += 1
        counts.append(done)

    def reload():
        try:
            seen = []
            for generation in range(1, 5):
                before = set(server.workers())
                server.configure(generation=str(generation))
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(set(server.workers()) - before) == 2 and not before & set(server.workers()),
                           "two new workers, the old ones gone or going")
                seen.append(Http(run.connect(server.port))("/generation")[2])
            return seen
        finally:
            stop.set()

    seen = in_threads([reload] + [close_each] * 3 + [keep_alive] * 3)[0]
    check(min(counts) > 10, "hardly any load: %s", counts)
    run.notes.append("%d requests" % sum(counts))
    server.end()
    return seen


@suite.case
def upgrade_of_the_binary(run):
    """SIGUSR2: a new master takes the listeners by exec, the old one leaves."""
    server, seen = Server(run, expect=False, daemon="on"), []
    old, pid_file = server.master, os.path.join(server.dir, "nginx.pid")
    kept = Http(run.connect(server.port))
    seen.append(kept("/f100")[0])
    os.kill(old, signal.SIGUSR2)
    new = wait_until(lambda: os.path.exists(pid_file + ".oldbin") and server.pid_from_file(), "the second master has begun")
    check(new != old, "no second master")
    wait_until(lambda: len(server.workers()) == 4, "the workers of both masters have started")
    for _ in range(40):
        check_equal(Http(run.connect(server.port))("/f4096", Connection="close")[0], 200, "the status")
    os.kill(old, signal.SIGQUIT)
    seen.append(check_ended(kept.conn, 20))
    os.waitpid(old, 0)
    for _ in range(40):
        check_equal(Http(run.connect(server.port))("/f4096", Connection="close")[0], 200, "the status")
    os.kill(new, signal.SIGQUIT)
    os.waitpid(new, 0)
    run.check_port_is_free(server.port, reuse=True)
    return seen


@suite.case
def wrk_against_it(run):
    """wrk has an event loop of its own: without and with the shim."""
    if not find_program("wrk"):
        raise Skipped("wrk is not installed")
    server, seen = Server(run), []
    for shim, connections in ((False, 64), (True, 64), (True, 500)):
        out = run.call(["wrk", "-t2", "-c%d" % connections, "-d1s", "http://%s:%d/f1023" % (suite.address, server.port)],
                       shim=shim)
        count = int(re.search(r"(\d+) requests in", out).group(1))
        check(count > 100, "only %d requests", count)
        check("Socket errors" not in out and "Non-2xx" not in out, "errors: %s", out)
        seen.append(connections)
    wait_until(lambda: Http(run.connect(server.port))("/status", Connection="close")[2].startswith(
        b"Active connections: 1 "), "all connections are gone")
    server.end()
    return seen


@suite.case
def connections_up_to_the_limit(run):
    """Idle connections all but fill the one worker; those that are closed make room."""
    server = Server(run, workers=1)
    idle = [run.connect(server.port) for _ in range(560)]
    client = Http(run.connect(server.port))
    seen = [client("/f100")[0]]
    for conn in idle:
        conn.close()
    wait_until(lambda: b"Active connections: 1 " in client("/status")[2], "the idle ones are forgotten")
    more = [Http(run.connect(server.port)) for _ in range(560)]
    for one in more:
        one.send("/f1")
    seen.append(sum(one.reply()[0] == 200 for one in more))
    server.end(signal.SIGTERM)
    seen.append(sorted({check_ended(one.conn) for one in more}))
    return seen


@suite.case
def worker_that_dies_is_replaced(run):
    server = Server(run)
    seen = []
    for _ in range(2):
        conns = [Http(run.connect(server.port)) for _ in range(20)]
        for conn in conns:
            check_equal(conn("/f1")[0], 200, "the status")
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        seen.append([check_ended(conn.conn) for conn in conns])
        wait_until(lambda: Http(run.connect(server.port))("/f1", Connection="close")[0] == 200, "it serves again")
        wait_until(lambda: len(server.workers()) == 2, "two workers")
    server.process.end(signal.SIGQUIT, 0)
    run.check_port_is_free(server.port, reuse=True)
    return seen


@suite.case
def ended_and_bound_again(run):
    seen = []
    for number in (signal.SIGTERM, signal.SIGQUIT):
        for conns in (0, 20):
            server = Server(run, expect=False)
            clients = [Http(run.connect(server.port)) for _ in range(conns)]
            for client in clients:
                check_equal(client("/f1")[0], 200, "the status")
            server.end(number)
            seen.append([check_ended(client.conn) for client in clients])
    return seen


@suite.case
def killed_and_bound_again(run):
    seen = []
    for conns in (0, 30):
        server = Server(run, expect=False)
        clients = [Http(run.connect(server.port)) for _ in range(conns)]
        for client in clients:
            check_equal(client("/f1")[0], 200, "the status")
        run.kill_and_rebind(server.process, server.port, [client.conn for client in clients])
        seen.append(conns)
    return seen


if __name__ == "__main__":
    suite.main()
