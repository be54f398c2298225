#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""CPython's own test_epoll, test_selectors and test_asyncio, test by test.

Each module runs in both modes at the same time (most of it is waiting), and the
outcome of every single test is compared. Some of those tests measure time and
fail now and then on a busy machine, whatever carries the polls: a test whose
outcome differs is run again alone, in both modes, up to three times, and counts
as different only if it never comes out the same.
"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import json
import os
import signal
import subprocess

from harness import Failure, Run, Skipped, Suite, check

suite = Suite("asyncio")
PYTHON = "/usr/bin/python3"

RUNNER = r"""
import faulthandler, json, sys, time, unittest
faulthandler.dump_traceback_later(%(limit)d, exit=True)
outcomes, times = {}, {}
class Result(unittest.TextTestResult):
    def startTest(self, test):
        self.began = time.monotonic(); super().startTest(test)
    def stopTest(self, test):
        times[test.id()] = time.monotonic() - self.began; super().stopTest(test)
        outcomes.setdefault(test.id(), "ok")
    def addError(self, test, err): outcomes[test.id()] = "error"; super().addError(test, err)
    def addFailure(self, test, err): outcomes[test.id()] = "failure"; super().addFailure(test, err)
    def addSkip(self, test, reason): outcomes[test.id()] = "skipped"; super().addSkip(test, reason)
    def addExpectedFailure(self, test, err): outcomes[test.id()] = "expected failure"; super().addExpectedFailure(test, err)
    def addUnexpectedSuccess(self, test): outcomes[test.id()] = "unexpected success"; super().addUnexpectedSuccess(test)
    def addSubTest(self, test, subtest, err):
        if err is not None: outcomes[test.id()] = "failure in a subtest"
        super().addSubTest(test, subtest, err)
import test.support
test.support.use_resources = ["network", "cpu", "walltime", "subprocess"]
tests = unittest.defaultTestLoader.loadTestsFromNames(%(names)r)
unittest.TextTestRunner(stream=sys.stderr, resultclass=Result, verbosity=2).run(tests)
with open(%(file)r, "w") as file:
    json.dump({"outcomes": outcomes, "times": times}, file)
"""


def start(run, names, limit, label):
    """Starts the tests; the outcomes come by a file, since tests write to both streams."""
    where = os.path.join(run.directory, label)
    os.makedirs(where)
    file = os.path.join(where, "outcomes")
    process = run.start([PYTHON, "-W", "ignore", "-c", RUNNER % {"limit": limit, "names": names, "file": file}],
                        env={"TMPDIR": where, "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}, cwd=where,
                        name="python-" + label)
    process.outcome_path = file
    return process


def collect(process, limit):
    process.wait(limit + 20)
    try:
        with open(process.outcome_path) as file:
            return json.load(file)
    except OSError:
        raise Failure("the tests did not come to their end (status %s): %s" %
                      (process.popen.returncode, process.errors()[-3000:])) from None


def merge(results):
    merged = {"outcomes": {}, "times": {}}
    for result in results:
        for key, found in merged.items():
            found.update(result[key])
    return merged


class Both:
    """The harness runs a body per mode; here one body runs both modes at once, in
    the epoll turn, and the ring's turn takes its half of the results. `groups`
    are lists of modules; each group is a process."""

    def __init__(self, groups, limit):
        self.groups, self.limit, self.results = groups, limit, {}

    def run_all(self, run):
        ring = None
        def start_all(which):
            return [start(which, names, self.limit, "group%d" % number) for number, names in enumerate(self.groups)]

        processes = {"epoll": start_all(run)}
        if suite.preload:
            ring = Run(suite, run.case, "ring")
            processes["ring"] = start_all(ring)
        try:
            results = {mode: merge([collect(process, self.limit) for process in started])
                       for mode, started in processes.items()}
            outcomes = {mode: result["outcomes"] for mode, result in results.items()}
            if ring:
                times = {mode: result["times"] for mode, result in results.items()}
                slow = [(times["ring"].get(name, 0) - took, name) for name, took in times["epoll"].items()]
                run.notes.append("all tests took %.0f s on epoll, %.0f s on the ring%s" % (
                    sum(times["epoll"].values()), sum(times["ring"].values()),
                    "".join("; %s %.1f s longer" % (name, more) for more, name in sorted(slow)[:-4:-1] if more > 2)))
            if ring:
                self.settle(run, ring, outcomes)
                self.reports = ring.reports()
        finally:
            for process in sum(processes.values(), []):
                if process.alive():
                    process.end(signal.SIGKILL)
            if ring:
                ring.remove()
        return outcomes

    def settle(self, run, ring, outcomes):
        for attempt in range(3):
            different = [name for name in sorted(set(outcomes["epoll"]) | set(outcomes["ring"]))
                         if outcomes["epoll"].get(name) != outcomes["ring"].get(name)]
            if not different or len(different) > 40:
                return
            again = [name for name in different if not name.startswith(("setUpClass", "tearDown", "setUpModule"))]
            pair = [start(which, again, 60, "again%d" % attempt) for which in (run, ring)]
            for mode, process in zip(("epoll", "ring"), pair):
                outcomes[mode].update(collect(process, 60)["outcomes"])
            run.notes.append("run again, alone: " + ", ".join("%s: %s" % (name, outcomes["epoll"].get(name) if
                             outcomes["epoll"].get(name) == outcomes["ring"].get(name) else "differs") for name in again))

    def __call__(self, run):
        if run.mode == "epoll" or not self.results:
            self.results = self.run_all(run)
        outcomes = self.results["epoll" if run.mode == "epoll" else "ring"]
        counts = {}
        for outcome in outcomes.values():
            counts[outcome] = counts.get(outcome, 0) + 1
        run.notes.append("%d tests: %s" % (len(outcomes), ", ".join("%d %s" % (count, outcome)
                                                                    for outcome, count in sorted(counts.items()))))
        check(counts.get("ok", 0) > 5, "hardly a test ran")
        if run.mode == "ring":
            total = {key: sum(report.get(key, 0) for report in self.reports.values())
                     for key in ("rings_made", "waits", "events", "cqes", "kernel_waits", "demotions")}
            run.notes.append("%d reports, %s" % (len(self.reports), " ".join("%s=%d" % item for item in total.items())))
            check(os.environ.get("RINGPOLL_MASK") or total["rings_made"] >= 1 and total["cqes"] >= 1, "the ring carried nothing")
        return outcomes


def directory_of(package):
    """Where this python keeps it; "" when it has none."""
    code = "import importlib.util as u; print(u.find_spec(%r).submodule_search_locations[0])" % package
    return subprocess.run([PYTHON, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=False).stdout.strip()


def asyncio_groups():
    """Two halves that take about the same time. What is Windows' alone would only be skipped."""
    where = directory_of("test.test_asyncio")
    modules = sorted(name[:-3] for name in (os.listdir(where) if os.path.isdir(where) else ())
                     if name.startswith("test_") and name.endswith(".py"))
    first = [name for name in modules if name in ("test_tasks", "test_subprocess", "test_futures", "test_taskgroups")]
    second = [name for name in modules if name not in first and "windows" not in name]
    return [["test.test_asyncio." + name for name in half] for half in (first, second)]


def is_installed(module):
    return os.path.exists(PYTHON) and subprocess.run([PYTHON, "-c", "import test." + module], stdout=subprocess.DEVNULL,
                                                     stderr=subprocess.DEVNULL, check=False).returncode == 0


def add(name, groups, limit):
    both = Both(groups, limit)

    def body(run):
        if not is_installed(name):
            raise Skipped("CPython's tests are not installed (Debian: libpython3.N-testsuite)")
        return both(run)

    body.__name__ = name
    suite.case(body, timeout=limit + 200)


add("test_epoll", [["test.test_epoll"]], 60)
add("test_selectors", [["test.test_selectors"]], 90)
add("test_asyncio", asyncio_groups(), 240)


if __name__ == "__main__":
    suite.main()
