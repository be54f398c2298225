#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""haproxy with four threads, HTTP and TCP mode, in front of a small server of our own."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import random
import re
import signal
import socket
import socketserver
import threading

from harness import Failure, Suite, check, check_ended, check_equal, find_program, in_threads, read_exactly, wait_until

suite = Suite("haproxy", needs=["haproxy"])

CONFIG = """
global
    nbthread %(threads)s
    maxconn 2000
    hard-stop-after 20s
    stats socket %(dir)s/admin.sock mode 600 level admin expose-fd listeners
    %(global)s
defaults
    timeout connect 10s
    timeout client 40s
    timeout server 40s
    timeout http-keep-alive 40s
    retries 1
    %(defaults)s
listen web
    mode http
    bind %(address)s:%(web)s
    http-request return status 200 content-type text/plain string %(generation)s if { path /generation }
    http-request deny deny_status 403 if { path /denied }
    http-reuse always
    server one %(address)s:%(backend_web)s
listen raw
    mode tcp
    bind %(address)s:%(raw)s
    server one %(address)s:%(backend_raw)s
listen local
    mode tcp
    bind %(dir)s/local.sock
    server one %(address)s:%(backend_raw)s
listen dead
    mode http
    bind %(address)s:%(dead)s
    server one %(address)s:%(unused)s
"""


class Backends:
    """An HTTP server that echoes bodies, and a TCP echo; threads of the test itself."""

    def __init__(self):
        backends = self

        class Web(socketserver.StreamRequestHandler):
            wbufsize = -1
            disable_nagle_algorithm = True

            def handle(self):
                while True:
                    line = self.rfile.readline()
                    if not line:
                        return
                    method, path, _ = line.decode().split()
                    headers = {}
                    while True:
                        line = self.rfile.readline()
                        if line in (b"\r\n", b""):
                            break
                        name, value = line.decode("latin-1").split(":", 1)
                        headers[name.lower()] = value.strip()
                    body = self.rfile.read(int(headers.get("content-length", 0)))
                    status = b"200 OK"
                    if path.startswith("/bytes/"):
                        body = content_of(int(path.split("/")[2]))
                    elif path == "/held":
                        backends.holding.set()
                        backends.release.wait(30)
                        body = b"released"
                    elif path == "/missing":
                        status = b"404 Not Found"
                    self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) +
                                     (b"" if method == "HEAD" else body))
                    self.wfile.flush()

        class Raw(socketserver.BaseRequestHandler):
            def handle(self):
                while True:
                    data = self.request.recv(1 << 16)
                    if not data:
                        return
                    self.request.sendall(data)

        self.holding, self.release = threading.Event(), threading.Event()
        self.servers = []
        for handler in (Web, Raw):
            class Quiet(socketserver.ThreadingTCPServer):
                daemon_threads, block_on_close, allow_reuse_address, request_queue_size = True, False, True, 512

                def handle_error(self, request, client_address):
                    pass  # A client that went away: the case itself tells if it should have.

            server = Quiet((suite.address, 0), handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            self.servers.append(server)
        self.web, self.raw = (server.server_address[1] for server in self.servers)

    def end(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


def content_of(size):
    return random.Random(size).randbytes(size)


class Proxy:
    def __init__(self, run, expect=True, options=(), **settings):
        self.run, self.backends = run, Backends()
        self.dir = os.path.join(run.directory, "haproxy%d" % len(run.processes))
        os.makedirs(self.dir)
        self.settings = {"dir": self.dir, "address": suite.address, "threads": 4, "global": "", "defaults": "",
                         "generation": "0", "backend_web": self.backends.web, "backend_raw": self.backends.raw}
        self.settings.update({name: run.free_port() for name in ("web", "raw", "dead", "unused")})
        self.settings.update(settings)
        self.config = os.path.join(self.dir, "haproxy.cfg")
        self.configure()
        self.process = run.start(["haproxy", "-db" if "-W" not in options else "-W", "-f", self.config] +
                                 [option for option in options if option != "-W"])
        run.wait_for_listener(self.process, self.web)
        run.wait_for_listener(self.process, self.local)
        if expect:
            run.expect_ring()

    def configure(self, **settings):
        self.settings.update(settings)
        with open(self.config, "w") as file:
            file.write(CONFIG % self.settings)

    web = property(lambda self: self.settings["web"])
    raw = property(lambda self: self.settings["raw"])
    local = property(lambda self: os.path.join(self.dir, "local.sock"))

    def admin(self, command):
        conn = self.run.connect(os.path.join(self.dir, "admin.sock"))
        conn.sendall(command.encode() + b"\n")
        out = b""
        while True:
            part = conn.recv(65536)
            if not part:
                return out.decode()
            out += part

    def end(self, number=signal.SIGUSR1, status=0):
        """A soft stop needs idle connections to be gone: they are closed first."""
        for conn in self.run.sockets:
            conn.close()
        self.process.end(number, status)
        self.run.check_port_is_free(self.web, reuse=True)
        self.run.check_port_is_free(self.raw, reuse=True)
        self.backends.end()


class Http:
    def __init__(self, conn):
        self.conn, self.reader = conn, conn.makefile("rb")

    def send(self, path, method="GET", body=b"", close=False):
        self.conn.sendall(b"%s %s HTTP/1.1\r\nHost: test\r\n%s%s\r\n" %
                          (method.encode(), path.encode(), b"Connection: close\r\n" if close else b"",
                           b"Content-Length: %d\r\n" % len(body) if body else b"") + body)

    def reply(self, method="GET"):
        line = self.reader.readline()
        if not line:
            raise EOFError("closed before the reply")
        length, status = 0, int(line.split()[1])
        while True:
            line = self.reader.readline()
            if line in (b"\r\n", b""):
                break
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = self.reader.read(length if method != "HEAD" else 0)
        if method != "HEAD" and len(body) != length:
            raise Failure("the body ends after %d of %d bytes" % (len(body), length))
        return status, body

    def __call__(self, path, method="GET", **options):
        self.send(path, method, **options)
        return self.reply(method)

    def close(self):
        self.reader.close()
        self.conn.close()


SIZES = (0, 1, 100, 4096, 16384, 65537, 1 << 20)


@suite.case
def http_mode(run):
    proxy = Proxy(run)

    def drive(number):
        client, seen = Http(run.connect(proxy.web)), []
        for size in SIZES:
            check(client("/bytes/%d" % size) == (200, content_of(size)), "%d bytes differ", size)
            body = content_of(size + number)
            check(client("/echo", "POST", body=body) == (200, body), "a body of %d bytes differs", size)
        for path in ("/missing", "/denied", "/generation"):
            seen.append(client(path))
        seen.append(client("/bytes/5000", "HEAD"))
        seen.append(client("/bytes/10", close=True))
        seen.append(check_ended(client.conn))
        client.close()
        return seen

    seen = in_threads([lambda number=number: drive(number) for number in range(12)])
    dead = Http(run.connect(proxy.settings["dead"]))
    seen.append(dead("/x"))
    dead.close()
    # Pipelined: all answered in order.
    client = Http(run.connect(proxy.web))
    for size in range(200):
        client.send("/bytes/%d" % size)
    check(all(client.reply() == (200, content_of(size)) for size in range(200)), "a pipelined reply differs")
    client.close()
    bad = run.connect(proxy.web)
    bad.sendall(b"NONSENSE\r\n\r\n")
    seen.append(read_exactly(bad, 12))
    seen.append(check_ended(bad))
    proxy.end()
    return seen


@suite.case
def tcp_mode(run):
    """Echo through TCP and AF_UNIX: lock-step, bulk both ways at once, half-close, reset."""
    proxy = Proxy(run)

    def lock_step(where):
        conn = run.connect(where)
        for turn in range(200):
            data = content_of(turn * 37 % 5000 + 1)
            conn.sendall(data)
            check(read_exactly(conn, len(data)) == data, "the echo differs")
        conn.close()
        return True

    def bulk(where):
        conn, data = run.connect(where), content_of(6 << 20)

        def push():
            conn.sendall(data)
            conn.shutdown(socket.SHUT_WR)

        got = in_threads([push, lambda: read_exactly(conn, len(data))])[1]
        check(got == data, "the bulk differs")
        end = check_ended(conn)
        conn.close()
        return end

    seen = in_threads([lambda where=where, work=work: work(where) for work in (lock_step, bulk)
                       for where in (proxy.raw, proxy.local) for _ in range(3)])
    for _ in range(20):
        conn = run.connect(proxy.raw)
        conn.sendall(b"x")
        read_exactly(conn, 1)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        conn.close()
    wait_until(lambda: re.search(r"^CurrConns: 0$", proxy.admin("show info"), re.M), "no connection is left")
    proxy.end()
    return seen


@suite.case
def hundreds_of_connections(run):
    proxy = Proxy(run)
    conns = [run.connect(proxy.raw) for _ in range(150)] + [run.connect(proxy.local) for _ in range(50)]

    def drive(part):
        for turn in range(15):
            data = b"%04d" % turn * 50
            for conn in part:
                conn.sendall(data)
            for conn in part:
                check(read_exactly(conn, len(data)) == data, "the echo differs")

    in_threads([lambda part=conns[i::8]: drive(part) for i in range(8)])
    clients = [Http(run.connect(proxy.web)) for _ in range(200)]
    for turn in range(5):
        for client in clients:
            client.send("/bytes/%d" % (turn * 1000))
        for client in clients:
            check(client.reply() == (200, content_of(turn * 1000)), "a reply differs")
    for client in clients:
        client.close()
    for conn in conns:
        conn.close()
    wait_until(lambda: re.search(r"^CurrConns: 0$", proxy.admin("show info"), re.M), "no connection is left")
    proxy.end()


@suite.case
def churn(run):
    """A connection per request; afterwards the process has no more fds than before."""
    proxy = Proxy(run)
    before = None

    def drive(_number):
        for turn in range(150):
            client = Http(run.connect(proxy.web))
            check(client("/bytes/%d" % turn, close=True) == (200, content_of(turn)), "a reply differs")
            check_ended(client.conn)
            client.close()
            run.sockets.remove(client.conn)

    drive(0)
    wait_until(lambda: re.search(r"^CurrConns: 0$", proxy.admin("show info"), re.M), "no connection is left")
    before = len(os.listdir("/proc/%d/fd" % proxy.process.pid))
    in_threads([lambda number=number: drive(number) for number in range(6)])
    # Idle connections to the server are kept by each thread: some more are right.
    wait_until(lambda: len(os.listdir("/proc/%d/fd" % proxy.process.pid)) <= before + 24, "no more fds than before", 10)
    proxy.end()


@suite.case
def timeouts_and_checks(run):
    """Timers beside fds: a client that says nothing, a server that does not answer, health checks."""
    proxy = Proxy(run, defaults="timeout http-request 300ms\n    timeout server 500ms\n    default-server check inter 50ms")
    seen = []
    silent = run.connect(proxy.web)
    silent.sendall(b"GET / HT")
    seen.append([read_exactly(silent, 12), check_ended(silent)])
    late = Http(run.connect(proxy.web))
    seen.append(late("/held")[0])
    proxy.backends.release.set()
    late.close()

    def states():
        rows = [line.split(",") for line in proxy.admin("show stat").splitlines()]
        return {row[0]: row[17] for row in rows if len(row) > 17 and row[1] == "one"}

    wait_until(lambda: states().get("dead", "").startswith("DOWN"), "the dead server is found dead")
    seen.append({name: state.split()[0] for name, state in states().items()})
    dead = Http(run.connect(proxy.settings["dead"]))
    seen.append(dead("/x")[0])
    dead.close()
    # And one that comes to life.
    with socket.socket() as alive:
        alive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alive.bind((suite.address, proxy.settings["unused"]))
        alive.listen(64)
        wait_until(lambda: states()["dead"] == "UP", "the server that came to life is found")
    proxy.end()
    return seen


@suite.case
def soft_stop(run):
    """SIGUSR1: the listeners go at once, the request in flight is served, then the process ends."""
    proxy = Proxy(run)
    client = Http(run.connect(proxy.web))
    client.send("/held")
    check(proxy.backends.holding.wait(30), "the request did not arrive")
    proxy.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: not run.is_tcp_listener(proxy.web) and not run.is_tcp_listener(proxy.raw),
               "the listeners are closed")
    check(proxy.process.alive(), "haproxy ended with a request in flight")
    run.check_port_is_free(proxy.raw, reuse=True)
    proxy.backends.release.set()
    seen = [client.reply(), check_ended(client.conn)]
    proxy.process.finish(0)
    proxy.backends.end()
    return seen


@suite.case
def reload_of_master_and_worker(run):
    """SIGUSR2: the master replaces its worker, listeners are handed over, no request fails."""
    socket_path = os.path.join(run.directory, "master.sock")
    proxy = Proxy(run, options=("-W", "-S", socket_path))
    stop, counts = threading.Event(), []

    def ask_master():
        try:
            conn = run.connect(socket_path)
            conn.sendall(b"show proc\n")
            answer = conn.recv(65536).decode()
            conn.close()
            return answer
        except OSError:
            return ""

    def load():
        done = 0
        while not stop.is_set():
            client = Http(run.connect(proxy.web))
            check_equal(client("/bytes/1000", close=True), (200, content_of(1000)), "reply")
            client.close()
            run.sockets.remove(client.conn)
            done += 1
        counts.append(done)

    def reload():
        try:
            seen = []
            for generation in range(1, 4):
                # A signal before its loop runs can find the master without a handler.
                wait_until(lambda: "worker" in ask_master(), "the master answers")
                before = set(run.family(proxy.process.pid)[1:])
                proxy.configure(generation=str(generation))
                proxy.process.send_signal(signal.SIGUSR2)

                def is_replaced(before=before, generation=generation):
                    now = set(run.family(proxy.process.pid)[1:])
                    client = Http(run.connect(proxy.web))
                    answer = client("/generation", close=True)[1]
                    client.close()
                    return now and not now & before and answer == b"%d" % generation
                wait_until(is_replaced, "a new worker answers and the old one is gone")
                seen.append(generation)
            return seen
        finally:
            stop.set()

    seen = in_threads([reload] + [load] * 3)[0]
    check(min(counts) > 10, "hardly any load: %s", counts)
    proxy.end(signal.SIGUSR1, status=None)
    return seen


@suite.case
def in_front_of_nginx(run):
    """Two programs in a row, both on a ring."""
    if not find_program("nginx"):
        return "no nginx"
    port, where = run.free_port(), os.path.join(run.directory, "web")
    os.makedirs(where)
    for size in SIZES:
        with open(os.path.join(where, "f%d" % size), "wb") as file:
            file.write(content_of(size))
    config = run.file("nginx.conf", """daemon off; user root; worker_processes 2; pid %s/nginx.pid; error_log stderr;
        events { use epoll; } http { access_log off; server { listen %s:%d; root %s;
        client_body_temp_path %s; proxy_temp_path %s; fastcgi_temp_path %s; uwsgi_temp_path %s;
        scgi_temp_path %s; } }""" % ((run.directory, suite.address, port, where) + (run.directory + "/t",) * 5))
    nginx = run.start(["nginx", "-c", config, "-e", "stderr"])
    run.wait_for_listener(nginx, port)
    proxy = Proxy(run, backend_web=port)

    def drive():
        client = Http(run.connect(proxy.web))
        for size in SIZES:
            check(client("/f%d" % size) == (200, content_of(size)), "%d bytes differ", size)
        client.close()
        return client

    in_threads([drive for _ in range(10)])
    if find_program("wrk"):
        out = run.call(["wrk", "-t2", "-c50", "-d1s", "http://%s:%d/f4096" % (suite.address, proxy.web)])
        check("Socket errors" not in out and "Non-2xx" not in out, "errors: %s", out)
    proxy.end()
    nginx.end(signal.SIGQUIT, 0)


@suite.case
def one_thread(run):
    proxy = Proxy(run, threads=1)
    client = Http(run.connect(proxy.web))
    for turn in range(300):
        check(client("/bytes/%d" % turn) == (200, content_of(turn)), "a reply differs")
    client.close()
    proxy.end()


@suite.case
def ended_and_bound_again(run):
    seen = []
    for number, conns in ((signal.SIGTERM, 0), (signal.SIGTERM, 20), (signal.SIGINT, 5), (signal.SIGKILL, 0),
                          (signal.SIGKILL, 20)):
        proxy = Proxy(run, expect=False)
        made = [run.connect(proxy.raw) for _ in range(conns)]
        for conn in made:
            conn.sendall(b"hello")
            read_exactly(conn, 5)
        if number == signal.SIGKILL:
            run.kill_and_rebind(proxy.process, proxy.raw, made)
            run.check_port_is_free(proxy.web, reuse=False, killed=True)
            seen.append("killed")
        else:
            proxy.process.end(number)
            run.check_port_is_free(proxy.raw, reuse=bool(conns))
            run.check_port_is_free(proxy.web, reuse=False)
            seen.append([proxy.process.popen.returncode] + [check_ended(conn) for conn in made])
        proxy.backends.end()
    return seen


if __name__ == "__main__":
    suite.main()
