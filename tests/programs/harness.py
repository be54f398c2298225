# SPDX-License-Identifier: MIT
"""Real programs, real clients: what all tests of this folder share.

A suite is a list of cases. The body of a case starts an unmodified program,
talks to it as its users do, and returns what it saw. The harness runs every
body twice, on plain epoll (the oracle) and with its polls on a ring
(RINGPOLL=require and the preload library), and a case passes when neither run
failed a check and both returned the same. So a test can hardly be wrong about
what a program does: it only has to ask for the same thing twice.

A program that links libevent or libuv is asked more often (Suite(library="libuv")):
there are more ways onto a ring, without the preload library. The modes are then
   epoll    as it is
   ring     the preload library
   event    the start-up object of libringpoll-event, into the distribution's libevent
   built    the library that was built --with-uring, by LD_LIBRARY_PATH; where
            RINGPOLL_LIBEVENT_DIR or RINGPOLL_LIBUV_DIR names its directory
            (the built tree, or where the libraries are)
   off      of libuv: the same, switched off: UV_USE_RINGPOLL=0
and what each returned is compared with what epoll's run did.

What is promised of every case, beside its own checks:
 - All processes have ended, by their pids. The test process is the subreaper
   of all that it starts, so daemons and orphans are seen too; one that is left
   over fails the case (and is killed).
 - Where a program listened, the port can be bound at the first try as soon as
   the program was waited for.
 - In ring mode the program's report ($RINGPOLL_STATS) shows that a ring carried
   events, or says why not, where the case asks for that. The libevent modes have
   no such report: `ringpoll stat` looks into the program right before it is ended.
   A libuv that was built --with-uring writes it, and switched off it must show no ring.
 - A case that hangs is ended by a watchdog, which says what every process
   waited for.

Servers listen on an address of their own in 127/8: a client's ephemeral port is
always on 127.0.0.1, so a port that was free stays free, also when several tests
run at once.

Environment: RINGPOLL_PRELOAD (path of the preload library), RINGPOLL_TEST_CASES
(comma-separated names: only these), RINGPOLL_TEST_MODES (epoll,ring, with libevent
epoll,ring,event,built, with libuv epoll,ring,built,off), RINGPOLL_LIBEVENT_DIR, RINGPOLL_LIBUV_DIR,
RINGPOLL_TEST_KEEP=1 (keep the directories and logs), RINGPOLL_TEST_SEED,
RINGPOLL_TEST_PATIENCE (seconds to wait for what should come at once),
RINGPOLL_PROFILE (safe when it is unset) and RINGPOLL_MASK (for the programs on the
ring).
"""

import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

PR_SET_CHILD_SUBREAPER = 36
SKIP = 77
HERE = os.path.dirname(os.path.abspath(__file__))
# Long enough for a machine that runs eight of these at once, short beside the
# "for ever" of an event that is lost.
PATIENCE_S = float(os.environ.get("RINGPOLL_TEST_PATIENCE", "30"))
# The ways without the preload library, by the library that a program links.
WAYS = {None: (), "libevent": ("event", "built"), "libuv": ("built", "off")}


class Failure(AssertionError):
    """A check of a case that did not hold."""


class Skipped(Exception):
    """A case that cannot be run here, with its reason."""


class Hung(Failure):
    """The watchdog's exception."""


def find_program(name):
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin"
    return shutil.which(name, path=path)


def find_built(*words):
    """What the build leaves at this place below its top."""
    for top in [os.environ.get("top_builddir") or ".", os.path.join(HERE, "..", "..")]:
        path = os.path.join(top, *words)
        if os.path.exists(path):
            return os.path.abspath(path)
    return None


def find_preload():
    """The preload library: named, or where the build leaves it."""
    return os.environ.get("RINGPOLL_PRELOAD") or find_built("adapters", "preload", ".libs", "libringpoll-preload.so")


def with_sanitizer(preload):
    """A library built with a sanitizer needs the sanitizer's runtime before it."""
    try:
        out = subprocess.run(["ldd", preload.split()[-1]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True, check=False).stdout
    except OSError:
        return preload
    runtimes = re.findall(r"=> (\S*lib(?:asan|tsan|ubsan)\.so\S*)", out)
    return " ".join(runtimes + [preload])


def clean_environment():
    return {key: value for key, value in os.environ.items()
            if not key.startswith("RINGPOLL") and key != "LD_PRELOAD"}


def ring_is_available(preload):
    """None, or in one sentence why the ring's half of the tests cannot run."""
    env = clean_environment()
    env.update(LD_PRELOAD=preload, RINGPOLL="require")
    code = "import select; e = select.epoll(); e.poll(0)"
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code], env=env, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode == 0:
        if "cannot be preloaded" in done.stderr:
            return done.stderr.strip()
        return None
    return "an epoll program under RINGPOLL=require ended with status %d: %s" % (
        done.returncode, done.stderr.strip() or "(silently)")


def descendants():
    """{pid: name} of every process below this one."""
    parent_of, name_of = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry) as file:
                text = file.read()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:].split()
        parent_of[int(entry)], name_of[int(entry)] = int(rest[1]), name
    found, me = {}, os.getpid()
    for pid in parent_of:
        above, hops = pid, 0
        while above in parent_of and above != me and hops < 100:
            above, hops = parent_of[above], hops + 1
        if above == me and pid != me:
            found[pid] = name_of[pid]
    return found


def describe_process(pid):
    """What each thread of a process waits for, as far as /proc tells."""
    lines = []
    try:
        for task in sorted(os.listdir("/proc/%d/task" % pid), key=int):
            base = "/proc/%d/task/%s/" % (pid, task)
            words = []
            for item in ("comm", "wchan", "syscall"):
                try:
                    with open(base + item) as file:
                        words.append(file.read().strip())
                except OSError as error:
                    words.append(error.strerror)
            lines.append("      thread %s: %s" % (task, " | ".join(words)))
    except OSError:
        lines.append("      (gone)")
    return "\n".join(lines)


class Process:
    """A started program. Its output goes to files, so that no pipe can fill."""

    def __init__(self, run, argv, env, stdin, cwd, name, preexec):
        self.run, self.name = run, name
        self.out_path = os.path.join(run.directory, "%s.%d.out" % (name, len(run.processes)))
        self.err_path = self.out_path[:-3] + "err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(argv, env=env, stdin=stdin, stdout=out, stderr=err,
                                          cwd=cwd or run.directory, start_new_session=True, preexec_fn=preexec)
        self.pid, self.argv = self.popen.pid, argv
        run.processes.append(self)

    def output(self):
        with open(self.out_path, errors="replace") as file:
            return file.read()

    def errors(self):
        with open(self.err_path, errors="replace") as file:
            return file.read()

    def alive(self):
        return self.popen.poll() is None

    def send_signal(self, number):
        self.popen.send_signal(number)

    def wait(self, timeout=PATIENCE_S):
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failure("%s (pid %d) does not end:\n%s" % (self.name, self.pid, describe_process(self.pid))) from None

    def finish(self, status=0, timeout=PATIENCE_S):
        """Waits for a program that ends by itself; returns its output."""
        got = self.wait(timeout)
        if status is not None and got != status:
            raise Failure("%s ended with status %d, not %d: %s" %
                          (self.name, got, status, (self.errors() or self.output())[-2000:]))
        return self.output()

    def end(self, number=signal.SIGTERM, status=None, timeout=PATIENCE_S):
        """Ends it by a signal, waits, and returns its status."""
        if self.alive():
            self.run.look(self.pid)
            self.send_signal(number)
        got = self.wait(timeout)
        if status is not None:
            check(got in (status if isinstance(status, tuple) else (status,)),
                  "%s ended with status %d, not %s: %s", self.name, got, status, self.errors()[-2000:])
        return got


class Run:
    """One run of one case's body in one mode."""

    def __init__(self, suite, case, mode, library=None):
        self.suite, self.case, self.mode, self.library = suite, case, mode, library
        self.directory = tempfile.mkdtemp(prefix="ringpoll-%s-" % suite.name)
        self.processes, self.notes, self.expected_rings = [], [], []
        self.stats_directory = os.path.join(self.directory, "stats")
        os.mkdir(self.stats_directory)
        self.sockets, self.looks = [], {}

    # -- starting programs ---------------------------------------------------

    def environment(self, extra=None, shim=True):
        env = clean_environment()
        env.update(LC_ALL="C.UTF-8", HOME=self.directory, TMPDIR=self.directory)
        env.update(extra or {})
        if shim and self.mode == "ring":
            env.update(self.ring_variables())
        elif shim and self.mode == "event":
            env.update(LD_PRELOAD=self.suite.startup,
                       ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0")
        elif shim and self.mode in ("built", "off"):
            env.update(self.built_variables())
        return env

    def ring_variables(self):
        # Under a mask there may be no ring at all, and the programs run as well.
        word = "auto" if os.environ.get("RINGPOLL_MASK") else "require"
        return {"LD_PRELOAD": self.suite.preload, "RINGPOLL": word, "RINGPOLL_PROFILE": self.suite.profile,
                "RINGPOLL_MASK": os.environ.get("RINGPOLL_MASK", ""), "RINGPOLL_STATS": os.path.join(self.stats_directory, "%p"),
                "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}

    def built_variables(self):
        """Of a program that gets the library that was built --with-uring."""
        env = {"LD_LIBRARY_PATH": self.suite.built[self.library]}
        if self.library == "libuv":
            env["RINGPOLL_STATS"] = os.path.join(self.stats_directory, "%p")
            # Its own default is no profile of the shim's.
            if os.environ.get("RINGPOLL_PROFILE"):
                env["RINGPOLL_PROFILE"] = self.suite.profile
            if self.mode == "off":
                env["UV_USE_RINGPOLL"] = "0"
        return env

    def start(self, argv, env=None, shim=True, stdin=subprocess.DEVNULL, cwd=None, name=None, preexec=None):
        program = find_program(argv[0]) or argv[0]
        return Process(self, [program] + [str(word) for word in argv[1:]], self.environment(env, shim), stdin, cwd,
                       name or os.path.basename(argv[0]), preexec)

    def call(self, argv, timeout=PATIENCE_S, status=0, **options):
        """Runs a program to its end; returns its output."""
        return self.start(argv, **options).finish(status, timeout)

    def file(self, name, content=b""):
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return path

    # -- talking to them -----------------------------------------------------

    def free_port(self):
        with socket.socket() as probe:
            probe.bind((self.suite.address, 0))
            return probe.getsockname()[1]

    def connect(self, where, timeout=PATIENCE_S, source=None):
        """A connected stream socket; `where` is a port, or the path of a socket, `source` an address of ours."""
        if isinstance(where, int):
            conn = socket.socket(socket.AF_INET)
            target = (self.suite.address, where)
        else:
            conn, target = socket.socket(socket.AF_UNIX), where
        conn.settimeout(timeout)
        if source:
            conn.bind((source, 0))
        conn.connect(target)
        if isinstance(where, int):
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets.append(conn)
        return conn

    def wait_for_listener(self, process, where, timeout=PATIENCE_S):
        """Until `where` is listened on; without a connection, so that the
        program under test has seen none."""
        deadline = time.monotonic() + timeout
        while not (self.is_tcp_listener(where) if isinstance(where, int) else self.is_unix_listener(where)):
            if not process.alive():
                raise Failure("%s ended at once with status %d: %s" %
                              (process.name, process.popen.returncode, (process.errors() or process.output())[-2000:]))
            if time.monotonic() > deadline:
                raise Failure("%s never listened on %s:\n%s" % (process.name, where, describe_process(process.pid)))
            select.select([], [], [], 0.005)

    def is_tcp_listener(self, port):
        wanted = "%08X:%04X" % (int.from_bytes(socket.inet_aton(self.suite.address), "little"), port)
        with open("/proc/net/tcp") as file:
            return any(words[1] == wanted and words[3] == "0A" for words in map(str.split, file))

    def is_unix_listener(self, path):
        # A program may have bound it by another name first (haproxy does).
        if not os.path.exists(path):
            return False
        with open("/proc/net/unix") as file:
            return any(words[-1].startswith(path) and words[3] == "00010000" for words in map(str.split, file))

    def check_port_is_free(self, port, reuse, killed=False):
        """The first try to bind must succeed: call it right after the wait. (A killed
        program whose ring accepted, by the profile throughput or by a listener of libevent's
        that completes on it, has the port for some milliseconds longer: design.md, known differences.)"""
        late = killed and ((self.mode == "built" and self.library == "libevent") or
                           (self.mode in ("ring", "built") and self.suite.profile == "throughput"))
        with socket.socket() as probe:
            if reuse:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.suite.address, port))
                probe.listen(1)
            except OSError as error:
                began = time.monotonic()
                while time.monotonic() < began + 5:
                    try:
                        with socket.socket() as again:
                            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if reuse else 0)
                            again.bind((self.suite.address, port))
                            again.listen(1)
                        if late:
                            self.notes.append("a killed program had its port for %.1f ms" %
                                              ((time.monotonic() - began) * 1e3))
                            return
                        raise Failure("the port could be bound only %.1f ms after the end of the program" %
                                      ((time.monotonic() - began) * 1e3)) from None
                    except OSError:
                        select.select([], [], [], 0.001)
                raise Failure("the port cannot be bound again: %s" % error.strerror) from None

    def check_datagram_port_is_free(self, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((self.suite.address, port))

    def ask_datagram(self, port, question, answer):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as conn:
            conn.settimeout(PATIENCE_S)
            conn.connect((self.suite.address, port))
            conn.send(question)
            check_equal(conn.recv(65536), answer, "the answer")

    def kill_and_rebind(self, process, port, conns=()):
        """SIGKILL of a program and all its children; the listener's port must be
        free as soon as they were waited for, and the peers must see the end."""
        below = self.family(process.pid)
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
        for pid in below:
            if pid != process.pid:
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass
        self.check_port_is_free(port, reuse=bool(conns), killed=True)
        for conn in conns:
            check_ended(conn)

    def end_or_kill(self, process, number, port, conns):
        """Ends a server by a signal; what its end and its connections were like, of SIGKILL nothing."""
        if number == signal.SIGKILL:
            self.look(process.pid)
            self.kill_and_rebind(process, port, conns)
            return []
        seen = [process.end(number)]
        self.check_port_is_free(port, reuse=bool(conns))
        return seen + [[check_ended(conn) for conn in conns]]

    def family(self, pid):
        """`pid` and all its descendants."""
        found = [pid]
        for member in found:
            try:
                for task in os.listdir("/proc/%d/task" % member):
                    with open("/proc/%d/task/%s/children" % (member, task)) as file:
                        found += [int(word) for word in file.read().split()]
            except OSError:
                continue
        return found

    # -- the ring's own word -------------------------------------------------

    def expect_ring(self, process=None, at_least_rings=1, cqes=1):
        """In ring mode the reports of this case must show rings that carried events. A libevent with our backend
        has none for plain events: where the suite has nothing else, or completing objects are not put in (event),
        they must show waits of its sets."""
        self.expected_rings.append((process.pid if process else None, at_least_rings, cqes))

    def look(self, pid):
        """What a program on a ring has done so far; for reports(), if it writes none (libevent's ways, SIGKILL)."""
        if self.mode == "epoll" or not self.suite.command:
            return
        done = subprocess.run([self.suite.command, "stat", "--json", str(pid)], env=clean_environment(),
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=PATIENCE_S, check=False)
        if done.returncode:
            return
        for process in json.loads(done.stdout)["processes"]:
            report = dict(process["counters"], rings=process["rings"])
            report["watches_ring"] = sum(each["fds_on_ring"] for each in process["sets"])
            reasons = sorted({each["reason"] for each in process["sets"] if each.get("reason")})
            if reasons:
                report["reason"] = "; ".join(reasons)
            self.looks[pid] = report

    def reports(self):
        """{pid: {key: value}}: what the library wrote at the end of each process, or look() saw."""
        found = {}
        for name in sorted(os.listdir(self.stats_directory)):
            pid = int(name) if name.isdigit() else 0
            with open(os.path.join(self.stats_directory, name), errors="replace") as file:
                for line in file:
                    words = re.match(r"\s*([A-Za-z_][A-Za-z_0-9-]*)\s*[:= ]\s*(.*)", line)
                    if not words:
                        continue
                    report, key, value = found.setdefault(pid, {}), words.group(1), words.group(2).strip()
                    if re.fullmatch(r"-?\d+", value):
                        report[key] = report.get(key, 0) + int(value)
                    else:
                        report.setdefault(key, value)
        for pid, report in self.looks.items():
            found.setdefault(pid, report)
        return found

    def check_reports(self):
        if self.mode == "epoll":
            return
        for process in self.processes:
            bad = re.search(r".*(?:runtime error:|(?:Address|Thread|Leak)Sanitizer).*", process.errors())
            if bad:
                raise Failure("%s: %s" % (process.name, process.errors()[bad.start():][:2000]))
        reports = self.reports()
        summary = {}
        for pid, report in reports.items():
            for key in ("rings_made", "waits", "events", "enters", "cqes", "kernel_waits", "demotions", "ops_in_flight"):
                if isinstance(report.get(key), int):
                    summary[key] = summary.get(key, 0) + report[key]
            # The report is written before the rings end: each watch has its poll, each ring one
            # more; what closed in the last moment may still be on its way. The rest would be a leak.
            numbers = [report.get(key, 0) for key in ("ops_in_flight", "watches_ring", "rings")]
            if all(isinstance(number, int) for number in numbers) and \
                    numbers[0] > numbers[1] + 2 * numbers[2] + 16:
                raise Failure("pid %d ended with %d operations in flight for %d watches on %d rings" %
                              ((pid,) + tuple(numbers)))
        reasons = sorted({str(report.get("reason")) for report in reports.values()
                          if report.get("reason") not in (None, "", "none", "-", 0)})
        self.summary = "%d reports, %s%s" % (len(reports), " ".join("%s=%d" % item for item in summary.items()),
                                             ("; reasons: " + ", ".join(reasons)) if reasons else "")
        if self.mode == "off":
            if any(report.get("rings_made") for report in reports.values()):
                raise Failure("switched off, there is a ring: %s" % self.summary)
            return
        for pid, rings, cqes in self.expected_rings:
            chosen = [report for key, report in reports.items() if pid in (None, key)]
            if not chosen:
                raise Failure("no report at the end of %s: no ringpoll in it?" % (pid or "any process"))
            got_rings = sum(report.get("rings_made", 0) for report in chosen)
            got_cqes = sum(report.get("cqes", 0) for report in chosen)
            if os.environ.get("RINGPOLL_MASK") and not got_rings and reasons:
                continue
            if self.library == "libevent" and (self.mode == "event" or (self.mode == "built" and self.suite.plain)):
                if not sum(report.get("waits", 0) for report in chosen):
                    raise Failure("no set of ours was waited on: %s" % self.summary)
                continue
            if got_rings < rings or got_cqes < cqes:
                raise Failure("the ring carried nothing: %d rings, %d completions (at least %d, %d expected); %s" %
                              (got_rings, got_cqes, rings, cqes, self.summary))

    # -- the end ---------------------------------------------------------------

    def end(self):
        """Ends what is left; returns its description, empty when nothing was."""
        for conn in self.sockets:
            conn.close()
        left = {}
        # A process that was told to end may take its moment.
        deadline = time.monotonic() + 2.0
        while True:
            for process in self.processes:
                process.popen.poll()
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
            left = descendants()
            if not left or time.monotonic() > deadline:
                break
            select.select([], [], [], 0.01)
        text = "\n".join("    left over: %s (pid %d)\n%s" % (name, pid, describe_process(pid))
                         for pid, name in left.items())
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.wait()
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        return text

    def remove(self):
        if not os.environ.get("RINGPOLL_TEST_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)


def check(condition, text="check failed", *values):
    if not condition:
        raise Failure(text % values if values else text)


def check_equal(got, want, what="value"):
    if got != want:
        raise Failure("%s is %s, expected %s" % (what, shorten(got), shorten(want)))


def shorten(value, limit=400):
    text = repr(value)
    return text if len(text) <= limit else "%s… (%d characters)" % (text[:limit], len(text))


def read_exactly(conn, count):
    parts, have = [], 0
    while have < count:
        part = conn.recv(min(count - have, 1 << 20))
        if not part:
            raise Failure("the peer closed after %d of %d bytes" % (have, count))
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def read_until(conn, mark, limit=1 << 24):
    """Up to and with `mark`; only for lock-step talk (it must be the last thing sent)."""
    data = bytearray()
    while not data.endswith(mark):
        part = conn.recv(65536)
        if not part:
            raise Failure("the peer closed after %s" % shorten(bytes(data)))
        data += part
        if len(data) > limit:
            raise Failure("no end after %d bytes" % len(data))
    return bytes(data)


# The longest that a peer of this run waited for its FIN, in seconds.
SLOWEST_END = [0.0]


def check_ended(conn, timeout=3.0):
    """The peer's FIN (or reset) must come: 'fin' or 'rst'."""
    conn.settimeout(timeout)
    began = time.monotonic()
    try:
        while conn.recv(65536):
            pass
        return "fin"
    except (ConnectionResetError, BrokenPipeError):
        return "rst"
    except (TimeoutError, socket.timeout):
        raise Failure("no FIN within %.0f s" % timeout) from None
    finally:
        SLOWEST_END[0] = max(SLOWEST_END[0], time.monotonic() - began)


def wait_until(condition, what, timeout=PATIENCE_S, pause=0.01):
    """Waits for a thing that only can be asked for."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure("not within %.0f s: %s" % (timeout, what))
        select.select([], [], [], pause)


def in_threads(jobs):
    """Runs all at once and returns their results; the first exception is raised."""
    results, errors = [None] * len(jobs), []

    def work(index, job):
        try:
            results[index] = job()
        except BaseException as error:  # pylint: disable=broad-except
            errors.append(error)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Suite:
    def __init__(self, name, needs=(), profile="safe", library=None, plain=False):
        """`plain`: of libevent, events and TLS on sockets alone, where nothing completes."""
        self.plain = plain
        self.name, self.needs, self.cases, self.library = name, needs, [], library
        self.profile = os.environ.get("RINGPOLL_PROFILE", profile)
        self.preload = self.startup = None
        self.built = {}
        self.command = find_built("tools", "ringpoll")
        pid = os.getpid()
        self.address = "127.%d.%d.%d" % (16 + (pid >> 14 & 0x3f), pid >> 7 & 0x7f, 1 + (pid & 0x7f))
        self.seed = int(os.environ.get("RINGPOLL_TEST_SEED", "1"))

    def case(self, function=None, *, timeout=60, library="", but=()):
        """`library`: which one the program of this case links (None: neither), where the suite has several.
        `but`: the ways that are known to differ (design.md)."""
        def add(body):
            body.but = but
            body.timeout, body.library = timeout, self.library if library == "" else library
            self.cases.append(body)
            return body
        return add(function) if function else add

    def run_once(self, body, mode):
        """('pass', value, run) · ('fail', text, run) · ('skip', text, run)"""
        run = Run(self, body.__name__, mode, body.library)
        run.summary, SLOWEST_END[0] = "", 0.0

        def on_alarm(_number, _frame):
            lines = ["hung; its processes:"]
            for pid, name in descendants().items():
                lines.append("    %s (pid %d)\n%s" % (name, pid, describe_process(pid)))
            # The body may be waiting in a loop of its own: end what it waits for.
            raise Hung("\n".join(lines))

        signal.signal(signal.SIGALRM, on_alarm)
        signal.alarm(body.timeout)
        try:
            value = body(run)
            verdict = ("pass", plain(value))
        except Skipped as reason:
            verdict = ("skip", str(reason))
        except Failure as failure:
            verdict = ("fail", str(failure))
        except Exception:  # pylint: disable=broad-except
            verdict = ("fail", traceback.format_exc(limit=-4).strip())
        finally:
            signal.alarm(0)
        if verdict[0] == "fail":
            details = ["    --- %s, status %s: %s" % (p.name, p.popen.poll(), (p.errors() or p.output())[-1200:].strip())
                       for p in run.processes if p.errors() or p.popen.poll() not in (None, 0)]
            verdict = ("fail", "\n".join([verdict[1]] + details[-4:]))
        left = run.end()
        if verdict[0] == "pass" and left:
            verdict = ("fail", left)
        if verdict[0] == "pass":
            try:
                run.check_reports()
            except Failure as failure:
                verdict = ("fail", str(failure))
        return verdict + (run,)

    def prepare(self, mode):
        """None, or in a sentence why this way onto the ring cannot be taken here."""
        if not self.command:
            return "the command is not built, which looks into the programs"
        if mode == "event":
            self.startup = find_built("adapters", "libevent", ".libs", "libringpoll-event-startup.so")
            if not self.startup:
                return "the start-up object is not built"
            self.startup = with_sanitizer(self.startup)
            if "libtsan" in self.startup:
                return "the programs' own locks are not instrumented, so ThreadSanitizer would report them"
            return None
        reasons = []
        for library in sorted({body.library for body in self.cases if mode in WAYS[body.library]}):
            variable = "RINGPOLL_%s_DIR" % library.upper()
            directory = os.environ.get(variable)
            if directory and os.path.isdir(os.path.join(directory, ".libs")):
                directory = os.path.join(directory, ".libs")
            if not directory:
                reasons.append("%s does not name the libraries of a %s that was built --with-uring" % (variable, library))
            elif not any(name.startswith(library) for name in os.listdir(directory)):
                raise SystemExit("%s=%s has no %s" % (variable, directory, library))
            else:
                self.built[library] = directory
        if self.built and reasons:
            print("%s: not every case goes by %s: %s" % (self.name, mode, "; ".join(reasons)))
        return "; ".join(reasons) if not self.built else None

    def takes(self, body, mode):
        """Whether this case has this way, and it can be taken here."""
        if mode in body.but:
            return False
        if mode in ("epoll", "ring"):
            return True
        return mode in WAYS[body.library] and (mode == "event" or body.library in self.built)

    def main(self):
        sys.stdout.reconfigure(line_buffering=True)
        for name in self.needs:
            if not find_program(name):
                print("%s: skipped: %s is not installed" % (self.name, name))
                self.finish(0, 0, len(self.cases))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ways = [way for library in sorted({str(body.library) for body in self.cases}) for way in WAYS.get(library, ())]
        modes = os.environ.get("RINGPOLL_TEST_MODES", ",".join(dict.fromkeys(["epoll", "ring"] + ways))).split(",")
        if "ring" in modes:
            self.preload = find_preload()
            reason = None
            if not self.preload:
                reason = "the preload library is not built (RINGPOLL_PRELOAD names it)"
            else:
                self.preload = with_sanitizer(self.preload)
                reason = ring_is_available(self.preload) if "libtsan" not in self.preload else \
                    "the programs' own locks are not instrumented, so ThreadSanitizer would report them"
            if reason:
                print("%s: skipped: %s" % (self.name, reason))
                self.finish(0, 0, len(self.cases))
        alone = modes == ["epoll"]
        for mode in ("event", "built", "off"):
            reason = self.prepare(mode) if mode in modes else None
            if reason:
                print("%s: the way by %s is skipped: %s" % (self.name, mode, reason))
                modes.remove(mode)
        if modes == ["epoll"] and not alone:
            print("%s: skipped: there is nothing to compare epoll with" % self.name)
            self.finish(0, 0, len(self.cases))
        chosen = os.environ.get("RINGPOLL_TEST_CASES")
        passed = failed = skipped = 0
        for body in self.cases:
            if chosen and body.__name__ not in chosen.split(","):
                continue
            if not alone and not any(self.takes(body, mode) for mode in modes if mode != "epoll"):
                print("  %-28s skipped: there is nothing to compare epoll with" % body.__name__)
                skipped += 1
                continue
            values, verdict = {}, "passed"
            for mode in modes:
                if not self.takes(body, mode):
                    continue
                began = time.monotonic()
                outcome, value, run = self.run_once(body, mode)
                took = time.monotonic() - began
                if SLOWEST_END[0] > 0.003:
                    run.notes.append("the slowest FIN took %.1f ms" % (SLOWEST_END[0] * 1e3))
                if outcome == "pass":
                    values[mode] = value
                    print("  %-28s %-5s ok      %5.1f s  %s" % (body.__name__, mode, took, run.summary))
                    for note in run.notes:
                        print("    note: %s" % note)
                elif outcome == "skip":
                    verdict = "skipped"
                    print("  %-28s %-5s skipped: %s" % (body.__name__, mode, value))
                else:
                    verdict = "failed"
                    print("  %-28s %-5s FAILED  %5.1f s  %s" % (body.__name__, mode, took, value))
                run.remove()
                if outcome != "pass" and mode == "epoll":
                    break
            for mode in modes:
                if "epoll" in values and mode in values and values["epoll"] != values[mode]:
                    verdict = "failed"
                    print("  %-28s %-5s differs: %s" % (body.__name__, mode,
                                                        first_difference(values["epoll"], values[mode])))
            if verdict == "passed":
                passed += 1
            elif verdict == "skipped":
                skipped += 1
            else:
                failed += 1
        self.finish(passed, failed, skipped)

    def finish(self, passed, failed, skipped):
        print("%s: %d passed, %d failed, %d skipped" % (self.name, passed, failed, skipped))
        sys.stdout.flush()
        # Threads of a case that hung may still wait for a peer: leave at once.
        os._exit(1 if failed else (SKIP if not passed else 0))


def plain(value):
    """A result without tuples, bytes and other things that do not compare or print well."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray)):
        return value.decode("latin-1")
    return value


def first_difference(on_epoll, on_ring, path=""):
    """Where two results part, in words."""
    if isinstance(on_epoll, dict) and isinstance(on_ring, dict):
        for key in sorted(set(on_epoll) | set(on_ring)):
            if on_epoll.get(key) != on_ring.get(key) or (key in on_epoll) != (key in on_ring):
                return first_difference(on_epoll.get(key), on_ring.get(key), "%s.%s" % (path, key))
    if isinstance(on_epoll, list) and isinstance(on_ring, list):
        for index, pair in enumerate(zip(on_epoll, on_ring)):
            if pair[0] != pair[1]:
                return first_difference(pair[0], pair[1], "%s[%d]" % (path, index))
        return "%s: %d items on epoll, %d on the ring" % (path or "result", len(on_epoll), len(on_ring))
    return "%s: on epoll %s, on the ring %s" % (path or "result", shorten(on_epoll), shorten(on_ring))
