#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A part of node's own test suite, on Debian's node: on its epoll, and on a libuv that was built
--with-uring. Not in `make check`: it takes long, and needs node's source package.

   node_own_tests.py --source DIR --libuv DIR [--jobs N] [--page FILE] [PATTERN…]

DIR is where `apt-get source nodejs` was unpacked, and where libuv.so.1 is (build/upstream/libuv/uring/.libs
after scripts/upstream.sh libuv). The patterns are of files in test/parallel; without any: net, http, dgram, pipe,
fs, child-process, cluster, tls, worker. What comes out in other ways than on epoll is run again on both, alone,
three times; it differs if it never comes out the same. The last line is "N passed, N failed, N skipped": failed is what
passes on epoll alone.
"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import argparse
import concurrent.futures
import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading

from harness import Skipped, clean_environment
from node_test import ENTER, Node

PATTERNS = ["test-net-*", "test-http-*", "test-dgram-*", "test-pipe-*", "test-fs-read*", "test-fs-write*", "test-fs-watch*",
            "test-fs-promises*", "test-fs-stream*", "test-child-process-*", "test-cluster-*", "test-tls-*", "test-worker-*",
            "test-stdin-*", "test-stdout-*", "test-stdio-*", "test-process-*", "test-timers-*", "test-dns-*", "test-signal-*"]
LIMIT_S = 120


class Runner:
    def __init__(self, options, node):
        self.source, self.libuv, self.node = os.path.abspath(options.source), os.path.abspath(options.libuv), node
        self.numbers, self.lock = [], threading.Lock()
        self.rings = 0

    def number(self):
        with self.lock:
            number = next(each for each in range(1000) if each not in self.numbers)
            self.numbers.append(number)
            return number

    def run(self, test, way):
        """'passed', 'failed' or 'hung', and the end of what it printed."""
        with open(test, errors="replace") as file:
            flags = re.findall(r"^// Flags:(.*)", file.read(), re.M)
        number = self.number()
        directory = tempfile.mkdtemp(prefix="ringpoll-node-")
        env = dict(clean_environment(), HOME=directory, TMPDIR=directory, INNER_PRELOAD="", INNER_LIBRARIES="",
                   ROOT=os.path.abspath(self.node.root) if self.node.root else "", TEST_THREAD_ID=str(number), TEST_PARALLEL="1",
                   NODE_TEST_DIR=directory, NODE_DISABLE_COLORS="1", TEST_SERIAL_ID=str(number))
        if way == "built":
            env.update(INNER_LIBRARIES=self.libuv, RINGPOLL_STATS=os.path.join(directory, "stats.%p"))
        words = [word for line in flags for word in line.split()] + [test]
        argv = ["unshare", "-m", "sh", "-c", ENTER, "sh"] + words
        if not self.node.root:
            argv = [self.node.program] + words
            if way == "built":
                env["LD_LIBRARY_PATH"] = self.libuv
        process = subprocess.Popen(argv, env=env, cwd=self.source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            out, _ = process.communicate(timeout=LIMIT_S)
            verdict = "failed" if process.returncode else "skipped" if out.startswith(b"1..0 # Skipped") else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, verdict = process.communicate()[0], "hung"
        for name in glob.glob(os.path.join(directory, "stats.*")):
            with open(name, errors="replace") as file:
                if re.search(r"^rings_made [1-9]", file.read(), re.M):
                    self.rings += 1
                    break
        shutil.rmtree(directory, ignore_errors=True)
        with self.lock:
            self.numbers.remove(number)
        return verdict, out.decode(errors="replace")[-1500:]


def main():
    parser = argparse.ArgumentParser(description="node's own tests on two ways")
    parser.add_argument("--source", required=True)
    parser.add_argument("--libuv", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page")
    parser.add_argument("patterns", nargs="*", default=PATTERNS)
    options = parser.parse_args()
    node = Node("debian")
    try:
        node.find()
    except Skipped as reason:
        print("skipped: %s" % reason)
        return 77
    runner = Runner(options, node)
    tests = sorted({test for pattern in options.patterns or PATTERNS
                    for test in glob.glob(os.path.join(runner.source, "test", "parallel", pattern))
                    if test.endswith((".js", ".mjs"))})
    outcomes = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(runner.run, test, way): (test, way) for test in tests for way in ("epoll", "built")}
        for done in concurrent.futures.as_completed(waiting):
            outcomes[waiting[done]] = done.result()
    lines, failed, late = [], 0, 0
    for test in tests:
        name, attempts = os.path.basename(test), 0
        epoll, built = outcomes[test, "epoll"], outcomes[test, "built"]
        while epoll[0] != built[0] and attempts < 3:
            epoll, built, attempts = runner.run(test, "epoll"), runner.run(test, "built"), attempts + 1
        outcomes[test, "epoll"], outcomes[test, "built"] = epoll, built
        if epoll[0] != built[0]:
            failed += epoll[0] in ("passed", "skipped")
            lines.append("- %s: %s on epoll, %s on the ring" % (name, epoll[0], built[0]))
            print(lines[-1] + "\n" + built[1])
        elif attempts:
            late += 1
            lines.append("- %s: %s on both, run again (%d)" % (name, epoll[0], attempts))
            print(lines[-1])
        elif epoll[0] not in ("passed", "skipped"):
            lines.append("- %s: %s on both" % (name, epoll[0]))
    counts = {way: {verdict: sum(outcomes[test, way][0] == verdict for test in tests)
                    for verdict in ("passed", "skipped", "failed", "hung")} for way in ("epoll", "built")}
    table = ["| way | run | passed | skipped | failed | hung |", "|---|---|---|---|---|---|"]
    table += ["| %s | %d | %s |" % (way, len(tests), " | ".join(str(count) for count in found.values()))
              for way, found in counts.items()]
    table.append("\n%d tests were seen to use a ring; %d came out the same only when they were run again." % (runner.rings, late))
    print("\n".join(table))
    if options.page:
        with open(options.page, "w") as file:
            file.write("\n".join(table + [""] + lines) + "\n")
    print("node: %d passed, %d failed, %d skipped" % (counts["built"]["passed"], failed, counts["built"]["skipped"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
