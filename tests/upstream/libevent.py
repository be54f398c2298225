#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs libevent's own suite on epoll and on every way in, and compares.

Started by scripts/upstream.sh, which builds what is needed. Each test of `regress` runs
in a process of its own, and so do the small programs beside it. A test that fails is
run again, up to three times, there and on epoll: what passes then was a matter of time.
The table says of each way what was run, skipped and failed, and what failed that epoll
does not fail. Exit status 0: nothing did, but for what tests/upstream/libevent.known
explains.
"""
import argparse
import concurrent.futures
import fnmatch
import glob
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

PROGRAMS = ["test-eof", "test-closed", "test-weof", "test-time", "test-changelist", "test-fdleak", "test-dumpevents"]
FAST = {"et", "signal", "thread", "listener", "bufferevent", "evbuffer", "finalize", "util", "main"}
SANITIZED = {"thread", "listener", "bufferevent", "signal", "main", "finalize", "evbuffer", "et"}
AGAIN = 3
TIME_LIMIT_S = 120


class Way:
    def __init__(self, name, tree, libraries, what, preload=None, **environment):
        self.name, self.tree, self.libraries, self.what = name, tree, libraries, what
        self.environment = {"LD_LIBRARY_PATH": ":".join(libraries)}
        if preload:
            self.environment["LD_PRELOAD"] = preload
        self.environment.update(environment)
        # The backend alone has nothing to complete: its events are plain ones.
        self.on_ring = name not in ("epoll", "startup") and "NOURING" not in " ".join(environment)


class Result:
    """Of one test: passed, failed or skipped, and how often it was tried."""

    def __init__(self, state, output):
        self.state, self.output, self.later = state, output, []

    def passed_later(self):
        return "passed" in self.later


def run(way, test, debug):
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(("RINGPOLL", "EVENT_", "LD_"))}
    environment.update(way.environment)
    if debug:
        environment["EVENT_DEBUG_MODE"] = "1"
    group, name = test.split("/", 1)
    programs = os.path.join(way.tree, "test", ".libs")
    # env, so that the loader's variables are the program's and not python's own.
    command = [os.path.join(programs, name)] if group == "program" else [os.path.join(programs, "regress"), test]
    child = subprocess.Popen(command, cwd=os.path.join(way.tree, "test"), env=environment, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = child.communicate(timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        output += b"\n(no end after %d s)\n" % TIME_LIMIT_S
    text = output.decode("utf-8", "replace")
    if group == "program":
        return Result("passed" if child.returncode == 0 else "failed", text)
    end = re.search(r"^(\d+) tests ok\.  \((\d+) skipped\)$", text, re.MULTILINE)
    if child.returncode != 0 or not end:
        return Result("failed", text)
    return Result("skipped" if end.group(2) != "0" else "passed", text)


def blames_us(result):
    """Whether the thread sanitizer's report is about ringpoll's own code."""
    return re.search(r"^SUMMARY: ThreadSanitizer: .*/(backend|adapters)/", result.output, re.MULTILINE) is not None


def run_all(way, tests, debug, jobs):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return dict(zip(tests, pool.map(lambda test: run(way, test, debug), tests)))


def try_again(way, test, debug, result):
    while result.state == "failed" and len(result.later) < AGAIN and not result.passed_later():
        result.later.append(run(way, test, debug).state)


def makes(way, pattern):
    """Whether a program of this way that has bufferevents makes such a system call; None: cannot be seen."""
    if not shutil.which("strace"):
        return None
    environment = dict(os.environ)
    sets = [word for item in way.environment.items() for word in ("-E", "=".join(item))]
    out = subprocess.run(["strace", "-f", "-q", "-e", "trace=io_uring_setup,epoll_create1", "-e", "signal=none", *sets,
                          os.path.join(way.tree, "test", ".libs", "regress"), "--no-fork", "bufferevent/bufferevent_connect"],
                         env=environment, check=False, cwd=os.path.join(way.tree, "test"),
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL).stderr
    if b"ptrace" in out and b"io_uring_setup(" not in out:
        return None
    return re.search(pattern, out) is not None


def method_of(way, **environment):
    """What a new base of this way runs on."""
    out = subprocess.run([os.path.join(way.tree, "test", ".libs", "test-init")], check=False, stdin=subprocess.DEVNULL,
                         env=dict(os.environ, **way.environment, EVENT_SHOW_METHOD="1", **environment),
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr.decode()
    found = re.search(r"libevent using: (.*)", out)
    return found.group(1) if found else "nothing"


def compare_methods(way, can):
    """What a `--with-uring` tree chooses: (sentences that are good, and bad)."""
    good, bad = [], []
    cases = [({}, "io_uring" if can else "epoll"), ({"EVENT_NOURING": "1"}, "epoll"),
             ({"EVENT_NOIO_URING": "1"}, "epoll"), ({"RINGPOLL_MASK": "no-uring"}, "epoll"),
             ({"EVENT_NOEPOLL": "1"}, "io_uring" if can else "poll")]
    for environment, expected in cases:
        method = method_of(way, **environment)
        said = " ".join("=".join(item) for item in environment.items()) or "nothing"
        (good if method == expected else bad).append(f"with {said} in the environment the method is {method}")
    return good, bad


def known_of(path):
    known = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                known.append(line.strip().split(None, 2))
    return known


def why_known(known, way, test):
    return next((why for ways, tests, why in known
                 if fnmatch.fnmatch(way, ways) and fnmatch.fnmatch(test, tests)), None)


def list_tests(way, quick):
    environment = dict(os.environ, **way.environment)
    listed = subprocess.run([os.path.join(way.tree, "test", ".libs", "regress"), "--list-tests"], env=environment,
                            stdout=subprocess.PIPE, check=False).stdout.decode()
    tests = re.findall(r"^ +([a-z]\S*/\S+)", listed, re.MULTILINE)
    if quick:
        tests = [test for test in tests if test.split("/")[0] in FAST]
    return tests + ["program/" + name for name in PROGRAMS
                    if os.path.exists(os.path.join(way.tree, "test", ".libs", name))]


def symbols_of(library):
    out = subprocess.run(["nm", "-D", "--defined-only", library], stdout=subprocess.PIPE, check=True).stdout.decode()
    return {line.split()[-1] for line in out.splitlines()}


def soname_of(library):
    out = subprocess.run(["objdump", "-p", library], stdout=subprocess.PIPE, check=True).stdout.decode()
    return re.search(r"SONAME +(\S+)", out).group(1)


def compare_libraries(of, with_):
    """The five of one directory with those of the other: (sentences that are good, and bad)."""
    good, bad = [], []
    for part in ("", "_core", "_extra", "_pthreads", "_openssl"):
        name = f"libevent{part}-2.1.so.7"
        first, second = os.path.join(of, name), os.path.join(with_, name)
        if not os.path.exists(second):
            if os.path.exists(first):
                bad.append(f"{name} is missing")
            continue
        if not os.path.exists(first):
            continue
        lost, more = symbols_of(first) - symbols_of(second), symbols_of(second) - symbols_of(first)
        if lost or soname_of(first) != soname_of(second):
            bad.append(f"{name} (soname {soname_of(second)}) lacks {', '.join(sorted(lost)[:8]) or 'the soname'}")
        else:
            good.append(f"{name}: {len(symbols_of(first))} symbols, all there"
                        + (f", and {', '.join(sorted(more))}" if more else ""))
    return good, bad


def ways_of(arguments):
    stock, uring, redirected = (os.path.abspath(tree) if tree else None
                                for tree in (arguments.stock, arguments.uring, arguments.redirected))
    lib = os.path.join(arguments.prefix, "lib")
    shim, startup = (os.path.join(lib, "ringpoll", f"libringpoll-{name}.so") for name in ("preload", "event-startup"))
    own = os.path.join(stock, ".libs")
    ways = [
        Way("epoll", stock, [own], "stock libevent, its own epoll"),
        Way("startup", stock, [own, lib], "stock, the backend put in by libringpoll-event-startup.so", preload=startup),
        Way("completion", stock, [own, lib], "the same, its bufferevents and listeners completing on the ring",
            preload=startup, RINGPOLL_EVENT_COMPLETION="1"),
        Way("uring", uring, [os.path.join(uring, ".libs"), lib], "`--with-uring` tree"),
        Way("replacing", stock, [os.path.join(uring, ".libs"), lib],
            "the stock tree's programs on the `--with-uring` tree's libraries"),
        Way("redirected", redirected, [os.path.join(redirected, ".libs"), lib],
            "stock sources linked by `pkg-config ringpoll-epoll`, profile safe"),
    ]
    for profile in ("readiness", "safe", "throughput"):
        ways.append(Way("shim-" + profile, stock, [own], f"stock under the shim, profile {profile}", preload=shim,
                        RINGPOLL_PROFILE=profile))
    ways.append(Way("off", uring, [os.path.join(uring, ".libs"), lib], "`--with-uring` tree, `EVENT_NOURING` set",
                    EVENT_NOURING="1"))
    return ways


def sanitized_ways_of(arguments):
    tree = os.path.abspath(arguments.tsan)
    libraries = [os.path.join(tree, ".libs"), os.path.join(arguments.tsan_prefix, "lib")]
    # A report is a failure; what a test of a death leaves behind is none.
    options = {"TSAN_OPTIONS": "halt_on_error=0:exitcode=66:die_after_fork=0:report_thread_leaks=0"}
    return [Way("epoll", tree, libraries, "`--with-uring` tree and ringpoll under the thread sanitizer, "
                "`EVENT_NOURING` set", EVENT_NOURING="1", **options),
            Way("uring", tree, libraries, "the same on the ring", **options)]


def page(arguments, table, stories, libraries, took, project="libevent", column="mode",
         how="Each test in a process of its own. ", built="libraries"):
    lines = [f"# {project}'s own suite, {time.strftime('%Y-%m-%d', time.gmtime())}", "",
             f"{project} {arguments.version}, the distribution's source with its patches; Linux {platform.release()}, "
             f"{platform.machine()}; `scripts/upstream.sh {project}{' --quick' if arguments.quick else ''}`, "
             f"{took:.0f} s.", "",
             f"{how}*Failed*: also when it was run again, three times. *Late*: passed "
             "then. *Epoll fails not*: of the failed, those that pass on epoll, without the explained ones.", "",
             f"| way | {column} | run | skipped | failed | late | explained | epoll fails not |",
             "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table]
    lines += ["", "## What failed", ""] + [f"- {story}" for story in stories]
    lines += ["", f"## The {built} of the `--with-uring` tree", ""]
    lines += [f"- {line}" for line in libraries]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", required=True)
    parser.add_argument("--uring", required=True)
    parser.add_argument("--redirected", required=True)
    parser.add_argument("--tsan", help="a --with-uring tree that was built with the thread sanitizer")
    parser.add_argument("--tsan-prefix")
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--known", required=True)
    parser.add_argument("--version", default="2.1.12")
    parser.add_argument("--logs", required=True)
    parser.add_argument("--page")
    parser.add_argument("--ways", help="some of them, separated by commas")
    parser.add_argument("--tests", help="those that fit this pattern alone")
    parser.add_argument("--modes", default="plain,debug,threads", help="some of plain, debug, threads")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    known = known_of(arguments.known)
    ways = ways_of(arguments)
    epoll = ways[0]
    if arguments.ways:
        wanted = arguments.ways.split(",")
        unknown = [name for name in wanted if name not in {way.name for way in ways}]
        if unknown:
            print(f"libevent.py: no way is called {unknown[0]}", file=sys.stderr)
            return 2
        ways = [way for way in ways if way.name in wanted]
    ways = [way for way in ways if way is not epoll]
    tests = list_tests(epoll, arguments.quick)
    if arguments.tests:
        tests = [test for test in tests if fnmatch.fnmatch(test, arguments.tests)]
    if not tests:
        print("libevent.py: regress lists no tests", file=sys.stderr)
        return 1
    os.makedirs(arguments.logs, exist_ok=True)
    table, stories, bad = [], [], 0

    good, differences = compare_libraries(os.path.join(epoll.tree, ".libs"),
                                          os.path.join(os.path.abspath(arguments.uring), ".libs"))
    libraries = good + differences
    # Those that the machine's own programs use; of an older build of the same version, maybe.
    directory = subprocess.run(["pkg-config", "--variable=libdir", "libevent_core"], stdout=subprocess.PIPE, check=False)
    directory = directory.stdout.decode().strip()
    if directory and glob.glob(os.path.join(directory, "libevent_core-2.1.so.7*")):
        good, wrong = compare_libraries(directory, os.path.join(os.path.abspath(arguments.uring), ".libs"))
        libraries += ["beside the installed: " + line for line in good + wrong]
        differences += ["beside the installed: " + line for line in wrong]
    probe = os.path.join(arguments.prefix, "bin", "ringpoll")
    can = subprocess.run([probe, "probe"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    good, wrong = compare_methods(next(way for way in ways_of(arguments) if way.name == "uring"), can)
    libraries += good + wrong
    differences += wrong
    bad = len(differences)
    for line in libraries:
        print(("NOT OK: " if line in differences else "ok: ") + line)
    if not can:
        print("skipped: whether each way is on a ring (there is none here)")
    for way in [epoll, *ways] if can else []:
        ring = makes(way, rb"io_uring_setup\(.*= \d")
        if ring is not None and ring != way.on_ring:
            print(f"NOT OK: {way.name} runs {'with' if ring else 'without'} a ring")
            stories.append(f"{way.name} runs {'with' if ring else 'without'} a ring")
            bad += 1
        if way.name == "startup" and makes(way, rb"(?s)epoll_create1\(.*epoll_create1\(") is False:  # libevent's own, then a set
            print("NOT OK: startup runs without our backend")
            stories.append("startup runs without our backend")
            bad += 1

    wanted = arguments.modes.split(",")
    modes = [(mode, mode == "debug", [epoll, *ways], tests) for mode in wanted if mode != "threads"]
    if arguments.tsan and "threads" in wanted:
        modes.append(("threads", False, sanitized_ways_of(arguments),
                      [test for test in tests if test.split("/")[0] in SANITIZED]))
    for mode, debug, mode_ways, mode_tests in modes:
        epoll = mode_ways[0]
        beside = run_all(epoll, mode_tests, debug, arguments.jobs)
        for test, result in beside.items():
            try_again(epoll, test, debug, result)
        for way in mode_ways:
            results = beside if way is epoll else run_all(way, mode_tests, debug, arguments.jobs)
            failed, late, explained, own = [], [], [], []
            for test, result in results.items():
                if result.state != "failed":
                    if way is not epoll and result.state == "skipped" and beside[test].state == "passed":
                        stories.append(f"{way.name}, {mode}: {test} is skipped, on epoll it runs")
                    continue
                with open(os.path.join(arguments.logs, f"{way.name}-{mode}-{test.replace('/', '-')}.log"), "w",
                          encoding="utf-8") as log:
                    log.write(result.output)
                try_again(way, test, debug, result)
                if result.passed_later():
                    late.append(test)
                    stories.append(f"{way.name}, {mode}: {test} passed when it was run again "
                                   f"({len(result.later)} times)")
                    continue
                failed.append(test)
                why = why_known(known, way.name, test)
                if way is epoll:
                    stories.append(f"{way.name}, {mode}: {test}")
                elif beside[test].state == "failed" and not beside[test].passed_later() and not blames_us(result):
                    pass
                elif why:
                    explained.append(test)
                    stories.append(f"{way.name}, {mode}: {test}: {why}")
                elif way is not epoll:
                    own.append(test)
                    stories.append(f"**{way.name}, {mode}: {test}, and not on epoll**")
                    print(f"---- {way.name}, {mode}: {test}\n{result.output[-3000:]}")
            skipped = sum(result.state == "skipped" for result in results.values())
            row = [way.what, mode, len(results) - skipped, skipped, len(failed), len(late), len(explained), len(own)]
            table.append(row)
            bad += len(own)
            print(f"{way.name}, {mode}: {row[2]} run, {skipped} skipped, {len(failed)} failed, {len(late)} late, "
                  f"{len(explained)} explained, {len(own)} that epoll does not fail", flush=True)
    if arguments.page:
        with open(arguments.page, "w", encoding="utf-8") as out:
            out.write(page(arguments, table, stories, libraries, time.monotonic() - began))
    for story in stories:
        print(story)
    checks = sum(row[2] for row in table) + len(libraries)
    print(f"upstream libevent: {checks - bad} passed, {bad} failed, {sum(row[3] for row in table)} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
