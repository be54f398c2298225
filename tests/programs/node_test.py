#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""node: HTTP, files, children, sockets, DNS, workers, cluster (see node_cases.js).

Two of them where both can be had: the one on the PATH, and Debian's own package,
which runs on the system's libuv. When another source's package shadows Debian's,
its files are fetched by version into a directory (RINGPOLL_NODE_DIRECTORY, or
ringpoll-tests/debian-node in the user's cache, outside of a build tree that
distcheck wants to find empty) and shown to that process alone by a mount
namespace, because it wants /usr/share/nodejs.
"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import glob
import json
import os
import re
import shutil
import signal
import subprocess

from harness import HERE, Skipped, Suite, check, find_program, wait_until

suite = Suite("node")

ENTER = r"""
mount --make-rprivate / && mount -t overlay -o "lowerdir=$ROOT/usr/share:/usr/share" overlay /usr/share || exit 99
export LD_LIBRARY_PATH="$(dirname "$ROOT"/usr/lib/*/libnode.so.*)${INNER_LIBRARIES:+:$INNER_LIBRARIES}"
export LD_PRELOAD="$INNER_PRELOAD"; [ -n "$LD_PRELOAD" ] || unset LD_PRELOAD
exec "$ROOT/usr/bin/node" "$@"
"""


def is_debians(program):
    """Debian's node is a small program beside libnode and libuv."""
    out = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=False).stdout
    return "libuv.so" in out


def quiet(argv, **options):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, timeout=120,
                          **options).stdout


def debian_directory():
    """Where Debian's node is unpacked; fetches it once. Skipped says why not."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    where = os.environ.get("RINGPOLL_NODE_DIRECTORY") or os.path.join(cache, "ringpoll-tests", "debian-node")
    if os.path.exists(os.path.join(where, "usr/bin/node")):
        return where
    if not find_program("apt-get") or os.getuid() != 0:
        raise Skipped("Debian's node is not here, and getting it needs apt-get and root")
    versions = re.findall(r"nodejs \| (18\.\S+)", quiet(["apt-cache", "madison", "nodejs"]))
    if not versions:
        raise Skipped("no Debian package of nodejs 18 is on offer")
    fetching = where + ".fetching.%d" % os.getpid()
    try:
        os.makedirs(fetching)
    except OSError as error:
        raise Skipped("Debian's node cannot be kept in %s: %s" % (where, error.strerror)) from None
    names = ["nodejs=" + versions[0], "libnode108=" + versions[0], "node-acorn", "node-busboy",
             "node-cjs-module-lexer", "node-undici", "node-xtend"]
    quiet(["apt-get", "download", "-q"] + names, cwd=fetching)
    packages = glob.glob(os.path.join(fetching, "*.deb"))
    root = os.path.join(fetching, "root")
    for package in packages:
        quiet(["dpkg-deb", "-x", package, root])
    if len(packages) == len(names):
        try:
            os.rename(root, where)
        except OSError:
            pass  # Another test was first.
    shutil.rmtree(fetching, ignore_errors=True)
    if not os.path.exists(os.path.join(where, "usr/bin/node")):
        raise Skipped("Debian's node cannot be fetched")
    return where


class Node:
    """A way to start one of the two."""

    def __init__(self, which):
        self.which, self.program, self.root = which, None, None

    def find(self):
        if self.program:
            return
        installed = find_program("node")
        if self.which == "installed" or (installed and is_debians(installed)):
            if self.which == "debian" or not installed:
                raise Skipped("the installed node is Debian's" if installed else "node is not installed")
            self.program = installed
            return
        self.root, self.program = debian_directory(), "unshare"
        if "ok" not in quiet(["unshare", "-m", "sh", "-c", ENTER, "sh", "-p", "'ok'"], env=self.variables(None)):
            self.program = None
            raise Skipped("Debian's node does not run here (a mount namespace with an overlay is needed)")

    def variables(self, preload):
        return dict(os.environ, ROOT=os.path.abspath(self.root), INNER_PRELOAD=preload or "", INNER_LIBRARIES="",
                    LD_PRELOAD="")

    def start(self, run, *words):
        self.find()
        script = [os.path.join(HERE, "node_cases.js")] + list(words)
        # A small heap of threads: the pool's size must not depend on the machine.
        env = {"UV_THREADPOOL_SIZE": "4", "NODE_OPTIONS": "", "NODE_DISABLE_COLORS": "1"}
        if not self.root:
            return run.start([self.program] + script, env=env, name="node")
        env.update(ROOT=os.path.abspath(self.root), INNER_PRELOAD="", INNER_LIBRARIES="")
        if run.mode == "ring":
            # Only the last program of the chain is to be preloaded.
            env.update(run.ring_variables())
            env["INNER_PRELOAD"] = env.pop("LD_PRELOAD")
        elif run.mode in ("built", "off"):
            env.update(run.built_variables())
            env["INNER_LIBRARIES"] = env.pop("LD_LIBRARY_PATH")
        return run.start(["unshare", "-m", "sh", "-c", ENTER, "sh"] + script, env=env, shim=False, name="node")


def run_case(node, run, name):
    files = os.path.join(run.directory, "files")
    os.makedirs(files)
    process = node.start(run, name, suite.address, files)
    out = json.loads(process.finish(0, 45))
    run.notes.append("%(node)s with libuv %(uv)s" % out["versions"])
    run.expect_ring(process)
    return out["seen"]


def served_from_outside(node, run):
    """A server that is ended by a signal: its port is free, its clients see the end."""
    seen = []
    for number, count in ((signal.SIGTERM, 0), (signal.SIGTERM, 10), (signal.SIGKILL, 0), (signal.SIGKILL, 10)):
        directory = os.path.join(run.directory, "%s-%d" % (number.name, count))
        os.makedirs(directory)
        process = node.start(run, "serve", suite.address, directory)
        path = os.path.join(directory, "port")
        wait_until(lambda path=path, process=process: os.path.exists(path) or not process.alive(), "it serves")
        check(process.alive(), "it ended: %s", process.errors()[-1000:])
        with open(path) as file:
            port = int(file.read())
        conns = [run.connect(port) for _ in range(count)]
        for conn in conns:
            conn.sendall(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n")
            check(conn.recv(4096).startswith(b"HTTP/1.1 200"), "no reply")
        seen += run.end_or_kill(process, number, port, conns)
    return seen


CASES = ("http_keep_alive", "http_close", "http_streaming", "files", "file_streams", "children", "passed_handles", "net_echo",
         "half_open", "tls", "dns_and_udp", "datagrams", "timers_and_workers", "standard_streams", "cluster")


def add_cases():
    for which in ("installed", "debian"):
        node = Node(which)
        # Another source's has a libuv of its own inside.
        linked = "libuv" if which == "debian" or is_debians(find_program("node") or "/none") else None
        for name in CASES:
            def body(run, node=node, name=name):
                return run_case(node, run, name)
            body.__name__ = "%s_%s" % (which, name)
            suite.case(body, library=linked)

        def outside(run, node=node):
            return served_from_outside(node, run)
        outside.__name__ = "%s_served_from_outside" % which
        suite.case(outside, library=linked)


if __name__ == "__main__":
    add_cases()
    suite.main()
