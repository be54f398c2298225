#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs libuv's own suite on epoll and on every way in, and compares.

Started by scripts/upstream.sh, which builds what is needed. The suite has fixed ports and
starts its own helpers, so that one run goes at a time. A test that fails is run again by
itself, up to three times, there and on epoll: what passes then was a matter of time. The
table says of each way and user what was run, skipped and failed, and what failed that
epoll does not fail. Exit status 0: nothing did, but for what tests/upstream/libuv.known
explains.
"""
import argparse
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from libevent import known_of, page, soname_of, symbols_of, why_known

AGAIN = 3
TIME_LIMIT_S = 300


class Way:
    def __init__(self, name, tree, what, preload=None, **environment):
        self.name, self.tree, self.what = name, tree, what
        self.environment = dict(environment)
        if preload:
            self.environment["LD_PRELOAD"] = preload
        self.on_ring = name not in ("epoll", "off")


class Place:
    """A directory with what a run needs and writes, which is the user's."""

    def __init__(self, way, user):
        self.way, self.user = way, user
        self.path = tempfile.mkdtemp(prefix="ringpoll-libuv-")
        built = os.path.join(way.tree, "test")
        program = os.path.join(built, ".libs", "run-tests")
        shutil.copy(program if os.path.exists(program) else os.path.join(built, "run-tests"), self.path)
        shutil.copytree(os.path.join(built, "fixtures"), os.path.join(self.path, "test", "fixtures"))
        shutil.copy(os.path.join(way.tree, ".libs", "libuv.so.1"), self.path)
        self.environment = {key: value for key, value in os.environ.items()
                            if not key.startswith(("RINGPOLL", "UV_", "LD_"))}
        self.environment.update(way.environment)
        self.environment.update(LD_LIBRARY_PATH=self.path, UV_TEST_TIMEOUT_MULTIPLIER="3")
        if "LD_PRELOAD" in way.environment: # where the user may read it
            shutil.copy(way.environment["LD_PRELOAD"], self.path)
            self.environment["LD_PRELOAD"] = os.path.join(self.path, os.path.basename(way.environment["LD_PRELOAD"]))
        if user is None and os.geteuid() == 0:
            self.environment["UV_RUN_AS_ROOT"] = "1"
        os.chmod(self.path, 0o755)
        if user is not None:
            entry = pwd.getpwnam(user)
            for directory, _, files in os.walk(self.path):
                for path in [directory, *(os.path.join(directory, name) for name in files)]:
                    os.chown(path, entry.pw_uid, entry.pw_gid)

    def run(self, *arguments, **environment):
        """The output, and the status or None after TIME_LIMIT_S."""
        who = {} if self.user is None else {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid,
                                            "extra_groups": []}
        # In a process group of its own: the suite's helpers are ended with it.
        child = subprocess.Popen([os.path.join(self.path, "run-tests"), *arguments], cwd=self.path,
                                 env=dict(self.environment, **environment), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **who)
        try:
            output, _ = child.communicate(timeout=TIME_LIMIT_S)
            status = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            status = None
        return output.decode("utf-8", "replace"), status

    def end(self):
        shutil.rmtree(self.path, ignore_errors=True)


def results_of(output):
    found = {}
    for state, name, rest in re.findall(r"^(ok|not ok) \d+ - (\S+)(.*)$", output, re.MULTILINE):
        found[name] = "failed" if state == "not ok" else "skipped" if "# SKIP" in rest else "passed"
    return found


def try_again(place, test):
    for _ in range(AGAIN):
        if place.run(test)[1] == 0:
            return True
    return False


def uses_a_ring(place):
    path = os.path.join(place.path, "stats")
    place.run("tcp_writealot", RINGPOLL_STATS=path)
    try:
        with open(path, encoding="utf-8") as lines:
            return any(re.match(r"rings_made [1-9]", line) for line in lines)
    except FileNotFoundError:
        return False


def compare_libraries(stock, uring):
    first, second = (os.path.join(tree, ".libs", "libuv.so.1") for tree in (stock, uring))
    lost, more = symbols_of(first) - symbols_of(second), symbols_of(second) - symbols_of(first)
    same = soname_of(first) == soname_of(second)
    if lost or more or not same:
        return [], [f"libuv.so.1: lacks {sorted(lost)[:8]}, adds {sorted(more)[:8]}, "
                    f"soname {soname_of(second)}"]
    return [f"libuv.so.1: {len(symbols_of(first))} symbols, the same, and no others"], []


def ways_of(arguments):
    stock, uring = (os.path.abspath(tree) for tree in (arguments.stock, arguments.uring))
    shim = os.path.join(arguments.prefix, "lib", "ringpoll", "libringpoll-preload.so")
    return [
        Way("epoll", stock, "stock libuv, its own epoll"),
        Way("uring", uring, "`--with-uring` tree"),
        Way("uring-throughput", uring, "the same, `RINGPOLL_PROFILE=throughput`: listeners on the ring, too",
            RINGPOLL_PROFILE="throughput"),
        Way("off", uring, "`--with-uring` tree, `UV_USE_RINGPOLL=0`", UV_USE_RINGPOLL="0"),
        *(Way("shim-" + profile, stock, f"stock under the shim, profile {profile}", preload=shim,
              RINGPOLL_PROFILE=profile) for profile in ("readiness", "safe", "throughput")),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", required=True)
    parser.add_argument("--uring", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--known", required=True)
    parser.add_argument("--version", default="")
    parser.add_argument("--logs", required=True)
    parser.add_argument("--page")
    parser.add_argument("--ways", help="some of them, separated by commas")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    known = known_of(arguments.known)
    epoll, *ways = ways_of(arguments)
    wanted = arguments.ways.split(",") if arguments.ways else ["uring", "shim-safe"] if arguments.quick else None
    if wanted:
        unknown = [name for name in wanted if name not in {way.name for way in [epoll, *ways]}]
        if unknown:
            print(f"libuv.py: no way is called {unknown[0]}", file=sys.stderr)
            return 2
        ways = [way for way in ways if way.name in wanted]
    users = [None] if arguments.quick or os.geteuid() != 0 else [None, "nobody"]
    os.makedirs(arguments.logs, exist_ok=True)
    can = subprocess.run([os.path.join(arguments.prefix, "bin", "ringpoll"), "probe"], stdout=subprocess.DEVNULL,
                         check=False).returncode == 0
    table, stories = [], []
    good, wrong = compare_libraries(epoll.tree, os.path.abspath(arguments.uring))
    libraries, bad = good + wrong, len(wrong)
    for line in libraries:
        print(("NOT OK: " if line in wrong else "ok: ") + line)
    for user in users:
        beside, who = {}, user or pwd.getpwuid(os.geteuid()).pw_name
        beside_place = Place(epoll, user)
        for way in [epoll, *ways]:
            place = beside_place if way is epoll else Place(way, user)
            output, status = place.run()
            with open(os.path.join(arguments.logs, f"{way.name}-{who}.log"), "w", encoding="utf-8") as log:
                log.write(output)
            results = results_of(output)
            own, failed, late, explained = [], [], [], []
            if way is epoll:
                beside = results
            if not results or status is None:
                own.append("the run itself")
                stories.append(f"**{way.name}, {who}: the run did not end by itself**")
            for test in beside:
                state = results.get(test, "failed")
                if state == "skipped" and beside[test] == "passed":
                    stories.append(f"{way.name}, {who}: {test} is skipped, on epoll it runs")
                if state != "failed":
                    continue
                if try_again(place, test):
                    late.append(test)
                    stories.append(f"{way.name}, {who}: {test} passed when it was run again")
                    continue
                failed.append(test)
                why = why_known(known, way.name, test)
                if way is epoll:
                    stories.append(f"{way.name}, {who}: {test}")
                elif beside[test] == "failed" and not try_again(beside_place, test):
                    pass
                elif why:
                    explained.append(test)
                    stories.append(f"{way.name}, {who}: {test}: {why}")
                else:
                    own.append(test)
                    stories.append(f"**{way.name}, {who}: {test}, and not on epoll**")
            if can and uses_a_ring(place) != way.on_ring:
                own.append("the ring")
                stories.append(f"**{way.name}, {who}: runs {'without' if way.on_ring else 'with'} a ring**")
            skipped = sum(state == "skipped" for state in results.values())
            table.append([way.what, who, len(results) - skipped, skipped, len(failed), len(late), len(explained),
                          len(own)])
            bad += len(own)
            print(f"{way.name}, {who}: {len(results) - skipped} run, {skipped} skipped, {len(failed)} failed, "
                  f"{len(late)} late, {len(explained)} explained, {len(own)} that epoll does not fail", flush=True)
            if place is not beside_place:
                place.end()
        beside_place.end()
    if arguments.page:
        with open(arguments.page, "w", encoding="utf-8") as out:
            out.write(page(arguments, table, stories, libraries, time.monotonic() - began, project="libuv",
                           column="user", how="", built="library"))
    for story in stories:
        print(story)
    checks = sum(row[2] for row in table) + len(libraries)
    print(f"upstream libuv: {checks - bad} passed, {bad} failed, {sum(row[3] for row in table)} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
