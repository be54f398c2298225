#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Programs with a terminal: tmux (server, panes, clients) and nvim.

tmux asks its libevent for poll instead of epoll (EVENT_NOEPOLL: an epoll cannot
watch /dev/null), so nothing of it is on a ring under the shim: what is shown there is
that the shim's other names (fork, dup2, close loops, passed fds, exec) leave it as it
is. By libevent's backend it is on a ring, event_reinit() after its fork included.
nvim's libuv runs on the ring.
"""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

from harness import HERE, PATIENCE_S, Failure, Skipped, Suite, check, check_equal, find_program, wait_until

suite = Suite("terminal", library="libevent", plain=True)


class Tmux:
    """A server of its own (its sockets are in the run's directory)."""

    def __init__(self, run):
        if run.mode == "ring":
            run.notes.append("tmux uses poll, not epoll: no ring, and no report")
        if not find_program("tmux"):
            raise Skipped("tmux is not installed")
        self.run = run
        self.env = {"TMUX_TMPDIR": run.directory, "TERM": "xterm-256color", "SHELL": "/bin/sh", "PS1": "$ ",
                    "ENV": "", "TMUX": ""}
        self.call("-f", "/dev/null", "new-session", "-d", "-s", "main", "-x", 100, "-y", 30, "sh")
        # Keys that come within a millisecond would be taken for a paste, and no binding obeyed.
        self.call("set-option", "-g", "assume-paste-time", 0)
        self.pid = int(self.call("display-message", "-p", "#{pid}"))
        if run.mode in ("event", "built"):
            run.expect_ring(self)

    def argv(self, *words):
        return ["tmux", "-L", "ringpoll"] + list(words)

    def call(self, *words):
        return self.run.call(self.argv(*words), env=self.env)

    def screen(self, target="main", *options):
        return self.call("capture-pane", "-p", "-t", target, *options)

    def wait_for_text(self, text, target="main", *options):
        return wait_until(lambda: re.search(text, self.screen(target, *options), re.M), "%r on the screen" % text)

    def end(self):
        self.run.look(self.pid)
        self.call("kill-server")
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            wait_until(lambda: not os.path.exists("/proc/%d" % self.pid), "the server has ended")
        for name in os.listdir(self.run.directory):
            if name.startswith("tmux-"):
                with open("/proc/net/unix") as file:
                    check(os.path.join(self.run.directory, name) not in file.read(), "its socket is still open")


class Terminal:
    """A program on a pseudo-terminal of ours."""

    def __init__(self, run, argv, env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.text = b""
        full = run.environment(env)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
                for fd in range(3):
                    os.dup2(slave, fd)
                os.closerange(3, 256)
                os.chdir(run.directory)
                os.execve(find_program(argv[0]), [str(word) for word in argv], full)
            finally:
                os._exit(126)
        os.close(slave)
        self.pid = pid

    def type(self, keys):
        os.write(self.master, keys.encode())

    def read(self, seconds=0.05):
        """What has come; None at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return None
        self.text += data
        return data or None

    def expect(self, pattern):
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text, re.S):
            if self.read() is None or time.monotonic() > deadline:
                raise Failure("%r did not come; the screen's last: %r" % (pattern, self.text[-600:]))
        self.text = b""

    def finish(self):
        """Reads to the end and waits; returns the exit status."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
            self.read(0.01)
            if time.monotonic() > deadline:
                raise Failure("the program on the terminal does not end; its last: %r" % self.text[-600:])


@suite.case
def tmux_panes_and_commands(run):
    tmux, seen = Tmux(run), []
    tmux.wait_for_text(r"^[#$]")
    tmux.call("send-keys", "-t", "main", "echo one-$((40+2))", "Enter")
    tmux.wait_for_text("^one-42")
    tmux.call("set-option", "-g", "history-limit", 30000)
    tmux.call("new-window", "-t", "main", "-n", "second", "sh")
    tmux.wait_for_text(r"^[#$]", "main:second")
    tmux.call("send-keys", "-t", "main:second", "seq 1 20000; echo do''ne", "Enter")
    tmux.wait_for_text("^done", "main:second")
    history = tmux.screen("main:second", "-S", "-").split("\n")
    numbers = [int(line) for line in history if line.isdigit()]
    check_equal(numbers, list(range(1, 20001)), "the numbers in the history")
    for direction in ("-h", "-v", "-h"):
        tmux.call("split-window", "-t", "main:second", direction, "sh")
    panes = tmux.call("list-panes", "-t", "main:second", "-F", "#{pane_index}").split()
    seen.append(len(panes))
    for pane in panes[1:]:
        tmux.call("send-keys", "-t", "main:second." + pane, "clear; echo I-am-$((%s+100))" % pane, "Enter")
    for pane in panes[1:]:
        tmux.wait_for_text("^I-am-%d" % (int(pane) + 100), "main:second." + pane)
    # A channel: the waiting client is woken by another.
    waiter = run.start(tmux.argv("wait-for", "channel"), env=tmux.env)
    tmux.call("send-keys", "-t", "main:0", "tmux -L ringpoll wait-for -S channel", "Enter")
    waiter.finish(0)
    seen.append(tmux.call("run-shell", "echo from-a-shell"))
    tmux.call("pipe-pane", "-t", "main:0", "cat > %s/piped" % run.directory)
    tmux.call("send-keys", "-t", "main:0", "echo pi''ped", "Enter")
    wait_until(lambda: os.path.exists(run.directory + "/piped") and "piped\r" in
               open(run.directory + "/piped", newline="").read(), "the output is piped")
    # A shell that ends closes its window.
    tmux.call("send-keys", "-t", "main:0", "exit", "Enter")
    wait_until(lambda: tmux.call("list-windows", "-t", "main", "-F", "#W").split() == ["second"], "its window is gone")
    seen.append(tmux.call("has-session", "-t", "main"))
    tmux.end()
    return seen


@suite.case
def tmux_attached_on_a_terminal(run):
    tmux = Tmux(run)
    tmux.wait_for_text(r"^[#$]")
    screen = Terminal(run, ["tmux", "-L", "ringpoll", "attach", "-t", "main"], tmux.env)
    screen.expect(rb"[#$] ")
    for turn in range(30):
        screen.type("echo answer-$((%d*2))\r" % turn)
        screen.expect(b"answer-%d[^0-9(]" % (turn * 2))
    # A resize reaches the pane; a second client sees what the first one types.
    other = Terminal(run, ["tmux", "-L", "ringpoll", "attach", "-t", "main"], tmux.env)
    other.expect(rb"answer-58")
    screen.type("echo for-$((1+1))-clients\r")
    screen.expect(b"for-2-clients")
    other.expect(b"for-2-clients")
    screen.type("\002d")
    check_equal(screen.finish(), 0, "the status of a detached client")
    other.type("\002d")
    check_equal(other.finish(), 0, "the status of a detached client")
    again = Terminal(run, ["tmux", "-L", "ringpoll", "attach", "-t", "main"], tmux.env)
    again.expect(b"for-2-clients")
    tmux.end()
    return again.finish()


@suite.case
def tmux_control_mode(run):
    """A client that talks by pipes: commands in, notifications out."""
    tmux, seen = Tmux(run), []
    read_end, write_end = os.pipe()
    client = run.start(tmux.argv("-C", "attach", "-t", "main"), env=tmux.env, stdin=read_end)
    os.close(read_end)
    tmux.wait_for_text(r"^[#$]")
    wait_until(lambda: "%session-changed" in client.output(), "it is attached")
    for turn in range(20):
        os.write(write_end, b"send-keys -t main 'echo turn-$((%d+1000))' Enter\n" % turn)
        wait_until(lambda turn=turn: re.search(r"%%output .*turn-%d" % (turn + 1000), client.output()), "its output")
    os.write(write_end, b"display-message -p 'answer from #{session_name}'\n")
    wait_until(lambda: "answer from main" in client.output(), "the answer")
    os.close(write_end)
    client.wait()
    seen.append("%exit" in client.output())
    tmux.end()
    return seen


@suite.case
def tmux_with_nothing_for_input(run):
    """/dev/null, which no epoll takes: in the server that the fd is passed to, and in the client."""
    tmux, seen = Tmux(run), []
    client = run.start(tmux.argv("-C", "attach", "-t", "main"), env=tmux.env)
    client.wait()
    seen.append([client.popen.returncode, "%exit" in client.output()])
    tmux.call("load-buffer", "-b", "empty", "-")
    read_end, write_end = os.pipe()
    os.write(write_end, b"of a pipe")
    os.close(write_end)
    run.call(tmux.argv("load-buffer", "-b", "full", "-"), env=tmux.env, stdin=read_end)
    os.close(read_end)
    seen.append(tmux.call("show-buffer", "-b", "full"))
    seen.append(tmux.call("list-buffers", "-F", "#{buffer_name}").split())
    tmux.end()
    return seen


def nvim(run, *words, **options):
    if not find_program("nvim"):
        raise Skipped("nvim is not installed")
    env = {"TERM": "xterm-256color", "XDG_RUNTIME_DIR": run.directory, "ADDRESS": suite.address}
    env.update(options.pop("env", {}))
    return ["nvim", "-u", "NONE", "-i", "NONE", "-n"] + list(words), env


@suite.case(library="libuv")
def nvim_headless_script(run):
    results = os.path.join(run.directory, "results")
    argv, env = nvim(run, "--headless", "-c", "luafile " + os.path.join(HERE, "nvim_cases.lua"), "-c", "cquit",
                     env={"RESULTS": results})
    process = run.start(argv, env=env)
    process.finish(0)
    run.expect_ring(process)
    check(os.path.exists(results), "no results: %s", process.errors()[-2000:])
    with open(results) as file:
        return file.read().splitlines()


@suite.case(library="libuv")
def nvim_loop(run):
    """What lua-luv's own test does, on the loop that nvim runs."""
    results = os.path.join(run.directory, "results")
    argv, env = nvim(run, "--headless", "-c", "luafile " + os.path.join(HERE, "luv_cases.lua"), "-c", "cquit",
                     env={"RESULTS": results, "DIRECTORY": run.directory})
    process = run.start(argv, env=env)
    process.finish(0)
    run.expect_ring(process, cqes=1000)
    check(os.path.exists(results), "no results: %s", process.errors()[-2000:])
    with open(results) as file:
        return file.read().splitlines()


@suite.case(library="libuv")
def nvim_driven_by_another(run):
    """A server without a screen; a second nvim sends it expressions and files."""
    path, seen = os.path.join(run.directory, "nvim.sock"), []
    argv, env = nvim(run, "--headless", "--listen", path)
    server = run.start(argv, env=env)
    run.wait_for_listener(server, path)
    run.expect_ring(server)
    for turn in range(8):
        seen.append(run.call(nvim(run, "--server", path, "--remote-expr", "6 * %d" % turn)[0], env=env))
    target = os.path.join(run.directory, "target")
    run.call(nvim(run, "--server", path, "--remote-send", ":e %s<CR>ifirst<CR>second<Esc>:w<CR>" % target)[0], env=env)
    wait_until(lambda: os.path.exists(target) and os.path.getsize(target), "the file is written")
    with open(target) as file:
        seen.append(file.read())
    run.call(nvim(run, "--server", path, "--remote-send", ":qall!<CR>")[0], env=env, status=None)
    server.finish(0)
    return seen


@suite.case(library="libuv")
def nvim_on_a_terminal(run):
    target = os.path.join(run.directory, "text")
    argv, env = nvim(run, target)
    screen = Terminal(run, argv, env)
    screen.expect(b"~")
    screen.type("ihello from the keyboard")
    screen.expect(b"keyboard")
    screen.type("\033")
    screen.type(":call append('$', range(1, 50))\r")
    screen.expect(b"2[^0-9]")
    screen.type(":r !echo from a shell\r")
    screen.expect(b"from a shell")
    screen.type(":wq\r")
    status = screen.finish()
    run.expect_ring()
    with open(target) as file:
        return [status, file.read()]


if __name__ == "__main__":
    suite.main()
