#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""coturn: its server relays what its own client sends, over UDP, TCP and TLS, all on loopback."""

import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import os
import re
import signal

from harness import Failure, Suite, check, describe_process

suite = Suite("coturn", needs=["turnserver", "turnutils_uclient", "openssl"], library="libevent", plain=True)


class Server:
    def __init__(self, run, *options):
        self.run, self.port, self.tls = run, run.free_port(), run.free_port()
        key, cert = os.path.join(run.directory, "key"), os.path.join(run.directory, "cert")
        run.call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", 30,
                  "-subj", "/CN=turn"], shim=False)
        self.process = run.start(["turnserver", "-c", run.file("turnserver.conf"), "-n", "-a", "-u", "someone:secret",
                                  "-r", "example", "-L", suite.address, "-E", suite.address, "-p", self.port,
                                  "--tls-listening-port", self.tls, "--cert", cert, "--pkey", key, "--no-cli",
                                  "--allow-loopback-peers", "--log-file", "stdout", "--no-stdout-log",
                                  "--pidfile", os.path.join(run.directory, "pid"), "--userdb",
                                  os.path.join(run.directory, "db"), "-m", 2] + list(options))
        run.wait_for_listener(self.process, self.port)
        run.wait_for_listener(self.process, self.tls)
        run.expect_ring(self.process)

    def relay(self, *options, clients=4, messages=20, tls=False):
        """turnutils_uclient's count of what it sent. Between the server and the peers all is
        UDP, some of which is lost on a busy machine: half of it is to come back."""
        try:
            text = self.run.call(["turnutils_uclient", "-u", "someone", "-w", "secret", "-y", "-n", messages, "-m", clients,
                                  "-l", 170, "-z", 5, "-p", self.tls if tls else self.port] + list(options) +
                                 [suite.address], timeout=60)
        except Failure as failure:
            raise Failure("%s\n%s" % (failure, self.describe())) from None
        found = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", text)
        check(found, "the client said: %s", text[-1500:])
        sent, received = map(int, found[-1])
        check(sent > 0 and received >= sent // 2, "%d of %d came back", received, sent)
        return sent

    def describe(self):
        """Who waits for whom: bytes that the server has yet to read stand in a queue of its end (rx), an event
        that it never heard of, then; with none there it has read them, and is itself to blame for the silence."""
        ports = {"%04X" % port for port in (self.port, self.tls)}
        with open("/proc/net/tcp") as file:
            lines = [line.split() for line in file][1:]
        queues = ["      %s to %s, state %s, tx:rx %s" % tuple(words[1:5]) for words in lines
                  if {words[1].split(":")[1], words[2].split(":")[1]} & ports]
        self.run.look(self.process.pid)
        return "the server:\n%s\n%s\n      %s\n%s" % (describe_process(self.process.pid), "\n".join(queues),
                                                    self.run.looks.get(self.process.pid), self.process.output()[-3000:])

    def end(self):
        self.process.end(signal.SIGTERM, -signal.SIGTERM)


@suite.case(timeout=120)
def relays_over_tcp(run):
    server = Server(run)
    seen = [server.relay("-t", clients=2), server.relay("-t", clients=6)]
    server.end()
    run.check_port_is_free(server.port, reuse=True, killed=True)
    return seen


@suite.case(timeout=120)
def relays_over_tls(run):
    server = Server(run)
    seen = server.relay("-t", "-S", clients=2, tls=True)
    server.end()
    return seen


@suite.case(timeout=120)
def relays_over_udp_and_tcp_by_one_thread(run):
    server = Server(run, "-m", 0)
    seen = [server.relay(clients=2), server.relay("-t", clients=2)]
    server.end()
    return seen


if __name__ == "__main__":
    suite.main()
