#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""pgbouncer between clients and a PostgreSQL server of its own: the server, which has no
libevent, is started once for each run, and has nothing of the library in it."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import glob
import os
import pwd
import re
import signal
import struct

from harness import (Failure, Skipped, Suite, check, check_ended, check_equal, find_program, in_threads,
                     read_exactly, wait_until)

suite = Suite("pgbouncer", needs=["pgbouncer"], library="libevent", plain=True)


def postgres_program(name):
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/" + name))
    return found[-1] if found else find_program(name)


def as_servers_user(run):
    """Neither program runs as root. Returns what a child calls before its exec."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name, None
    user = pwd.getpwnam("nobody")
    for path in (run.directory, run.stats_directory):
        os.chown(path, user.pw_uid, user.pw_gid)

    def become():
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    return user.pw_name, become


class Servers:
    def __init__(self, run, *settings, expect=True):
        self.run, self.directory = run, run.directory
        if not postgres_program("initdb") or not postgres_program("postgres"):
            raise Skipped("PostgreSQL's server is not installed")
        self.user, self.become = as_servers_user(run)
        data = os.path.join(run.directory, "data")
        run.call([postgres_program("initdb"), "-D", data, "-U", self.user, "-A", "trust", "-N", "--no-locale",
                  "-E", "UTF8"], shim=False, preexec=self.become)
        self.postgres = run.start([postgres_program("postgres"), "-D", data, "-k", run.directory, "-c",
                                   "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"], shim=False,
                                  preexec=self.become)
        wait_until(lambda: "ready to accept connections" in self.postgres.errors(), "PostgreSQL is ready")
        self.settings, self.port = settings, run.free_port()
        self.write_settings()
        self.start(expect)

    def write_settings(self, **more):
        words = dict({"listen_addr": suite.address, "listen_port": self.port, "unix_socket_dir": self.directory,
                      "auth_type": "any", "admin_users": self.user, "pool_mode": "transaction", "default_pool_size": 8,
                      "max_client_conn": 400, "ignore_startup_parameters": "extra_float_digits",
                      "logfile": os.path.join(self.directory, "pgbouncer.log"), "stats_period": 1}, **more)
        with open(os.path.join(self.directory, "pgbouncer.ini"), "w") as file:
            file.write("[databases]\npostgres = host=%s port=5432 user=%s\n[pgbouncer]\n" % (self.directory, self.user))
            file.writelines("%s = %s\n" % item for item in words.items())
            file.writelines(line + "\n" for line in self.settings)

    def start(self, expect=True):
        self.bouncer = self.run.start(["pgbouncer", os.path.join(self.directory, "pgbouncer.ini")], preexec=self.become)
        self.run.wait_for_listener(self.bouncer, self.port)
        if expect:
            self.run.expect_ring(self.bouncer)
        method = wait_until(lambda: re.search(r"libevent \S+ \((\w+)\)", self.bouncer.errors()), "its first lines").group(1)
        check_equal(method, "io_uring" if self.run.mode in ("event", "built") else "epoll", "the method in its log")

    def client(self, where=None, database="postgres"):
        return Client(self.run, self.port if where is None else where, self.user, database)

    def end(self):
        self.bouncer.end(signal.SIGINT, 0)
        self.postgres.end(signal.SIGINT, 0)


class Client:
    """PostgreSQL's protocol, version 3: simple and prepared queries, in lock-step."""

    def __init__(self, run, where, user, database):
        self.conn = run.connect(where)
        body = struct.pack(">I", 196608) + b"user\0%s\0database\0%s\0\0" % (user.encode(), database.encode())
        self.conn.sendall(struct.pack(">I", 4 + len(body)) + body)
        self.key = None
        self.until_ready()

    def message(self):
        head = read_exactly(self.conn, 5)
        return head[:1], read_exactly(self.conn, struct.unpack(">I", head[1:])[0] - 4)

    def until_ready(self):
        """[row…], tag or error: all until the server is ready again."""
        rows, end = [], None
        while True:
            kind, body = self.message()
            if kind == b"D":
                count, at, row = struct.unpack(">H", body[:2])[0], 2, []
                for _ in range(count):
                    size = struct.unpack(">i", body[at:at + 4])[0]
                    at += 4
                    row.append(None if size < 0 else body[at:at + size].decode())
                    at += max(size, 0)
                rows.append(row)
            elif kind == b"C":
                end = body[:-1].decode()
            elif kind == b"E":
                fields = dict((item[:1].decode(), item[1:].decode()) for item in body.split(b"\0") if item)
                end = "%s %s" % (fields["C"], fields["M"])
            elif kind == b"K":
                self.key = body
            elif kind == b"Z":
                return rows, end

    def send(self, kind, body):
        self.conn.sendall(kind + struct.pack(">I", 4 + len(body)) + body)

    def query(self, text):
        self.send(b"Q", text.encode() + b"\0")
        return self.until_ready()

    def one(self, text):
        rows, end = self.query(text)
        check(len(rows) == 1, "%s answered %d rows and %s", text, len(rows), end)
        return rows[0][0]

    def prepared(self, text, *values):
        """Parse, bind, execute and sync of the unnamed statement, in one write."""
        words = b"".join(struct.pack(">i", len(value)) + value.encode() for value in values)
        parts = ((b"P", b"\0" + text.encode() + b"\0" + struct.pack(">H", 0)),
                 (b"B", b"\0\0" + struct.pack(">HH", 0, len(values)) + words + struct.pack(">H", 0)),
                 (b"E", b"\0" + struct.pack(">I", 0)), (b"S", b""))
        self.conn.sendall(b"".join(kind + struct.pack(">I", 4 + len(body)) + body for kind, body in parts))
        return self.until_ready()

    def close(self):
        self.send(b"X", b"")
        return check_ended(self.conn)


@suite.case(timeout=90)
def queries_of_every_kind(run):
    servers, seen = Servers(run), []
    for where in (None, os.path.join(run.directory, ".s.PGSQL.%d" % servers.port)):
        client = servers.client(where)
        seen.append(client.query("create table numbers (n int primary key, word text)"))
        seen.append(client.query("insert into numbers select n, 'word ' || n from generate_series(1, 500) n"))
        seen.append(client.query("select * from numbers where n % 100 = 7 order by n"))
        seen.append(client.query("select nothing from nowhere"))
        seen.append(client.query("begin; update numbers set word = 'x' where n < 10; select count(*) from numbers where "
                                 "word = 'x'; rollback"))
        for number in range(50):
            seen.append(client.prepared("select word from numbers where n = $1::int", str(number * 10)))
        seen.append(client.query("drop table numbers"))
        seen.append(client.close())
    servers.end()
    return seen


@suite.case(timeout=90)
def a_hundred_clients_on_eight_servers(run):
    servers = Servers(run)
    setup = servers.client()
    setup.query("create table counts (who int primary key, n int); insert into counts select g, 0 from generate_series(0, 99) g")
    clients = [servers.client() for _ in range(100)]

    def drive(part):
        for turn in range(10):
            for number, client in part:
                client.send(b"Q", b"update counts set n = n + 1 where who = %d returning n\0" % number)
            for number, client in part:
                check_equal(client.until_ready(), ([[str(turn + 1)]], "UPDATE 1"), "the count of client %d" % number)
    numbered = list(enumerate(clients))
    in_threads([lambda part=numbered[i::4]: drive(part) for i in range(4)])
    total = setup.one("select sum(n) from counts")
    backends = int(setup.one("select count(*) from pg_stat_activity where backend_type = 'client backend'"))
    check(backends <= 8, "%d connections to PostgreSQL, of 8", backends)
    ends = [client.close() for client in clients[::2]]
    for client in clients[1::2]:
        client.conn.close()
    admin = servers.client(database="pgbouncer")
    wait_until(lambda: [row for row in admin.query("show pools")[0] if row[0] == "postgres"][0][2] == "1",
               "one client is left", pause=0.05)
    servers.end()
    return [total, ends]


@suite.case(timeout=90)
def rows_of_megabytes(run):
    """Larger than its buffers, in both directions, by clients that read late."""
    servers = Servers(run)
    client = servers.client()
    client.query("create table texts (n int, t text)")

    def one(number):
        mine = servers.client()
        text = "".join(chr(97 + (i * (number + 3)) % 26) for i in range(1 << 20))
        check_equal(mine.query("insert into texts values (%d, '%s')" % (number, text))[1], "INSERT 0 1", "the answer")
        mine.send(b"Q", b"select t from texts where n = %d\0" % number)
        rows, end = mine.until_ready()
        check(rows == [[text]], "client %d got another text and %s", number, end)
        rows = mine.query("select n, repeat('x', 1000) from generate_series(1, 3000) n")[0]
        check_equal([len(rows), rows[-1][0], len(rows[-1][1])], [3000, "3000", 1000], "the rows")
        return mine.close()
    seen = in_threads([lambda number=number: one(number) for number in range(4)])
    seen.append(client.query("select n, length(t), md5(t) from texts order by n"))
    servers.end()
    return seen


@suite.case(timeout=90)
def its_own_console(run):
    """pause and resume, a reload by a signal, a limit, a query that another connection cancels."""
    servers, seen = Servers(run), []
    admin, client = servers.client(database="pgbouncer"), servers.client()
    seen.append(client.one("select 6 * 7"))
    seen.append(admin.query("pause")[1])
    client.send(b"Q", b"select 'after the pause'\0")
    seen.append(admin.query("show databases")[0][0][:2])
    seen.append(admin.query("resume")[1])
    seen.append(client.until_ready())
    servers.write_settings(max_client_conn=3)
    servers.bouncer.send_signal(signal.SIGHUP)
    wait_until(lambda: dict(row[:2] for row in admin.query("show config")[0])["max_client_conn"] == "3", "the reload")
    third = servers.client()
    try:
        servers.client()
        raise Failure("a fourth client was let in")
    except Failure as failure:
        check("closed" in str(failure), "%s", failure)
    seen.append(third.close())
    sleeper = servers.client()
    sleeper.send(b"Q", b"select pg_sleep(3600)\0")
    wait_until(lambda: client.one("select count(*) from pg_stat_activity where query like '%(3600)%' and state = 'active' "
                                  "and pid <> pg_backend_pid()") == "1", "it sleeps")
    with run.connect(servers.port) as other:
        other.sendall(struct.pack(">II", 16, 80877102) + sleeper.key)
        check_ended(other)
    seen.append(sleeper.until_ready())
    seen.append(sleeper.close())
    seen.append(admin.query("show lists")[0][0])
    servers.end()
    return seen


@suite.case(timeout=90)
def pgbench_through_it(run):
    """PostgreSQL's own load program: prepared transactions of eight clients."""
    if not postgres_program("pgbench"):
        raise Skipped("pgbench is not installed")
    servers = Servers(run)
    where = ["-h", suite.address, "-p", servers.port, "-U", servers.user, "postgres"]
    run.call([postgres_program("pgbench"), "-i", "-q"] + where, shim=False, preexec=servers.become)
    text = run.call([postgres_program("pgbench"), "-n", "-c", 8, "-j", 2, "-t", 100, "-M", "extended"] + where,
                    shim=False, preexec=servers.become)
    check("number of transactions actually processed: 800/800" in text, "pgbench said: %s", text)
    client = servers.client()
    seen = [client.one("select count(*) from pgbench_history")]
    seen.append(client.one("select sum(tbalance) = (select sum(delta) from pgbench_history) from pgbench_tellers"))
    servers.end()
    run.check_port_is_free(servers.port, reuse=True)
    for report in run.reports().values():
        check(report["enters"] < 3 * report["waits"] + 1000, "%d enters in %d waits", report["enters"], report["waits"])
    return seen


if __name__ == "__main__":
    suite.main()
