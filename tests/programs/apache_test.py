#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Apache's event MPM: one thread of each process waits, its workers put connections back into the set from theirs."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import glob
import os
import signal
import socket
import threading

from harness import Failure, Skipped, Suite, check, check_ended, check_equal, in_threads, wait_until
from web import Backend, Client, content_of, ten_go_away

suite = Suite("apache", needs=["apache2"])

MODULES = "mpm_event authz_core alias mime env cgid proxy proxy_http reqtimeout setenvif"
CONFIG = """
ServerRoot "%(dir)s"
DefaultRuntimeDir "%(dir)s"
ServerName here
TypesConfig "/dev/null"
PidFile "%(dir)s/apache.pid"
ErrorLog "%(dir)s/error.log"
Listen %(address)s:%(port)d
%(modules)s
User %(user)s
Group %(group)s
StartServers %(processes)d
ServerLimit %(processes)d
ThreadsPerChild %(each)d
ThreadLimit %(each)d
MinSpareThreads 1
MaxSpareThreads %(threads)d
MaxRequestWorkers %(threads)d
AsyncRequestWorkerFactor 8
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
Timeout 60
ScriptSock "%(dir)s/cgid.sock"
DocumentRoot "%(dir)s/files"
<Directory "%(dir)s/files">
    Options +ExecCGI
    Require all granted
</Directory>
AddHandler cgi-script .cgi
ProxyPass "/proxied/" "http://%(address)s:%(backend)d/" enablereuse=on
"""


class Server:
    def __init__(self, run, processes=1, each=16):
        modules = next(iter(glob.glob("/usr/lib/apache2/modules")), None)
        if not modules:
            raise Skipped("its modules are not found")
        self.run, self.port, self.backend = run, run.free_port(), Backend(suite.address)
        if not os.path.isdir(os.path.join(run.directory, "files")):
            os.mkdir(os.path.join(run.directory, "files"))
        # The children are another user's.
        os.chmod(run.directory, 0o755)
        os.chmod(run.stats_directory, 0o777)
        for size in (0, 1, 100, 5000, 100000, 3000000):
            run.file("files/%d" % size, content_of(size))
        root = os.getuid() == 0
        settings = {"dir": run.directory, "address": suite.address, "port": self.port, "backend": self.backend.port,
                    "modules": "\n".join("LoadModule %s_module %s/mod_%s.so" % (name, modules, name)
                                         for name in MODULES.split()),
                    "user": "nobody" if root else "#%d" % os.getuid(), "group": "nogroup" if root else "#%d" % os.getgid(),
                    "processes": processes, "threads": each * processes, "each": each}
        run.file("apache.conf", CONFIG % settings)
        self.process = run.start(["apache2", "-DFOREGROUND", "-f", os.path.join(run.directory, "apache.conf")])
        run.wait_for_listener(self.process, self.port)
        run.expect_ring(cqes=0)

    def client(self):
        return Client(self.run, self.port)

    def end(self, number=signal.SIGTERM):
        for pid in self.run.family(self.process.pid):
            self.run.look(pid)
        status = self.process.end(number)
        self.run.check_port_is_free(self.port, reuse=True)
        self.backend.end()
        return status


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
    seen += [client.ask("GET", "/3000000", headers=["Range: bytes=1000-1099"]), client.ask("GET", "/none")[0]]
    # Requests one behind the other, and an end that the client asks for.
    client.conn.sendall(b"".join(client.pack("GET", "/%d" % (1 if index & 1 else 5000)) for index in range(60)))
    for index in range(60):
        size = 1 if index & 1 else 5000
        check_equal(client.answer(), (200, content_of(size)), "answer %d" % index)
    seen += [client.ask("GET", "/100", headers=["Connection: close"]), check_ended(client.conn)]
    # A request that comes byte by byte, one that is none, and ends in the middle.
    client = server.client()
    for byte in client.pack("GET", "/100"):
        client.conn.sendall(bytes([byte]))
    seen.append(client.answer())
    bad = server.client()
    bad.conn.sendall(b"nonsense\r\n\r\n")
    seen += [bad.answer()[0], check_ended(bad.conn)]
    half = server.client()
    half.send("GET", "/5000")
    half.conn.shutdown(socket.SHUT_WR)
    check_equal(half.answer(), (200, content_of(5000)), "the answer after the client's end")
    server.end()
    return seen


@suite.case
def slow_readers(run):
    """What a worker cannot write waits in the set for room."""
    server = Server(run)
    clients = [server.client() for _ in range(24)]
    for client in clients:
        client.conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send("GET", "/3000000")
    # More than there are workers: another one is served all the same.
    check_equal(server.client().ask("GET", "/100"), (200, content_of(100)), "the answer beside them")
    for client in clients[12:]:
        client.go()
    answers = in_threads([client.answer for client in clients[:12]])
    check(answers == [(200, content_of(3000000))] * 12, "a big file is another")
    check_equal(server.client().ask("GET", "/1"), (200, content_of(1)), "the answer after them")
    server.end()
    return True


@suite.case
def proxied(run):
    server, seen = Server(run), []
    client = server.client()
    for size in [0, 1, 100, 3000, 9000, 70000, 700000, 20, 2000000] + [50] * 30:
        seen.append(client.ask("POST", "/proxied/echo", body=content_of(size)) == (200, content_of(size)))
        seen.append(client.ask("GET", "/proxied/bytes/%d" % size) == (200, content_of(size)))
    ten_go_away(server)
    check_equal(client.ask("GET", "/100"), (200, content_of(100)), "the answer to one that stayed")
    server.end()
    return seen


@suite.case
def cgi(run):
    server, seen = Server(run), []
    script = run.file("files/echo.cgi", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n"
                      "printf '%s %s ' \"$REQUEST_METHOD\" \"$QUERY_STRING\"\nexec cat\n")
    os.chmod(script, 0o755)
    client = server.client()
    for size in (0, 1, 5000, 200000, 7):
        seen.append(client.ask("POST", "/echo.cgi?%d" % size, body=content_of(size)))
        seen.append(client.ask("GET", "/echo.cgi?get"))
    seen.append(in_threads([lambda: server.client().ask("POST", "/echo.cgi?many", body=content_of(3000))] * 6))
    server.end()
    return seen


@suite.case
def many_clients(run):
    # With as many workers as it may need: where all are busy, idle connections are closed.
    server = Server(run, processes=2, each=48)

    def talk(index):
        client = server.client()
        for number in range(40):
            size = (0, 1, 100, 5000)[(number + index) % 4]
            check_equal(client.ask("GET", "/%d" % size), (200, content_of(size)), "the file")
            check_equal(client.ask("POST", "/proxied/echo", body=content_of(size)), (200, content_of(size)), "the echo")
        return True
    seen = in_threads([lambda index=index: talk(index) for index in range(16)])
    server.end()
    return seen


@suite.case
def graceful_restarts(run):
    """New processes, and old ones that end after their last answer, while clients come and go."""
    server, stop, done = Server(run, processes=2), threading.Event(), []

    def load():
        while not stop.is_set():
            try:
                client = server.client()
                check_equal(client.ask("GET", "/5000", headers=["Connection: close"]), (200, content_of(5000)), "the file")
            except (ConnectionError, Failure) as error:
                done.append(str(error))
            else:
                done.append("")
                client.go()
        return True

    def lines(text):
        with open(os.path.join(run.directory, "error.log")) as file:
            return file.read().count(text)

    def restarts():
        for number in range(1, 4):
            server.process.send_signal(signal.SIGUSR1)
            wait_until(lambda: lines("resuming normal operations") > number, "it has restarted")
            before = len(done)
            wait_until(lambda: len(done) > before + 20, "answers of the new processes")
        stop.set()
        return True
    seen = in_threads([load] * 4 + [restarts])
    check_equal(sorted(set(done)), [""], "what the clients met")
    server.end()
    return seen


@suite.case
def ends(run):
    seen = []
    for number in (signal.SIGTERM, signal.SIGWINCH, signal.SIGKILL):
        server = Server(run)
        clients = [server.client() for _ in range(4)]
        for client in clients:
            seen.append(client.ask("GET", "/100")[0])
        if number == signal.SIGKILL:
            server.backend.end()
            run.look(server.process.pid)
            run.kill_and_rebind(server.process, server.port, [client.conn for client in clients])
        else:
            server.end(number)
            seen += [check_ended(client.conn) for client in clients]
    return seen


if __name__ == "__main__":
    suite.main()
