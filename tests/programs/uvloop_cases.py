# SPDX-License-Identifier: MIT
"""What the uvloop tests do inside python: `python3 uvloop_cases.py CASE ADDRESS DIRECTORY`
runs one case, both sides of it, and prints what it saw as JSON."""

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading

import uvloop

CASE, ADDRESS, DIRECTORY = sys.argv[1:4]
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def data_of(size, seed=1):
    return random.Random(seed).randbytes(size)


def digest(data):
    return hashlib.sha1(data).hexdigest()


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except ConnectionError:
        pass
    writer.close()


async def talk(connect, size, seed):
    """All of it at once, while the echo is read."""
    reader, writer = await connect()
    data = data_of(size, seed)

    async def send():
        for at in range(0, size, 30011):
            writer.write(data[at:at + 30011])
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    got, _ = await asyncio.gather(reader.readexactly(size), send())
    assert got == data
    end = await reader.read() if writer.can_write_eof() else b""
    writer.close()
    await writer.wait_closed()
    return len(got) + len(end)


async def exercise(start, connect, turns=300):
    server = await start()
    seen = [await asyncio.gather(*[talk(connect(server), i * 9973, i) for i in range(40)])]
    # Lock-step.
    reader, writer = await connect(server)()
    for turn in range(turns):
        writer.write(b"turn %d\n" % turn)
        assert await reader.readline() == b"turn %d\n" % turn
    # Small writes in one go, which uvloop gathers; writes of lists; a large one behind them.
    for i in range(500):
        writer.write(b"%08d" % i)
    writer.writelines([b"%08d" % i for i in range(500, 2000)])
    writer.write(data_of(3 << 20))
    back = await reader.readexactly(16000 + (3 << 20))
    seen.append([digest(back), back[:16000] == b"".join(b"%08d" % i for i in range(2000))])
    writer.close()
    # Nobody reads for a while: the writer has to wait, and goes on.
    reader, writer = await connect(server)()
    transport = writer.transport
    transport.set_write_buffer_limits(high=1 << 16)
    sent = asyncio.ensure_future(send_all(writer, 6 << 20))
    await asyncio.sleep(0.02)
    total = 0
    while total < 6 << 20:
        total += len(await reader.read(1 << 18))
    await sent
    seen.append(total)
    transport.abort()
    server.close()
    await server.wait_closed()
    return seen


async def send_all(writer, size):
    for _ in range(size >> 16):
        writer.write(bytes(1 << 16))
        await writer.drain()


@case
async def streams():
    async def start():
        return await asyncio.start_server(echo, ADDRESS, 0)

    def connect(server):
        port = server.sockets[0].getsockname()[1]
        return lambda: asyncio.open_connection(ADDRESS, port)
    seen = await exercise(start, connect)
    # A connection that nobody takes.
    server = await start()
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    try:
        await asyncio.open_connection(ADDRESS, port)
    except ConnectionRefusedError as error:
        seen.append(type(error).__name__)
    return seen


@case
async def unix():
    path = os.path.join(DIRECTORY, "socket")
    return await exercise(lambda: asyncio.start_unix_server(echo, path),
                          lambda server: lambda: asyncio.open_unix_connection(path))


def contexts():
    key = os.path.join(DIRECTORY, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", key + ".crt",
                    "-subj", "/CN=test", "-days", "2"], check=True, stderr=subprocess.DEVNULL)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(key + ".crt", key)
    client = ssl.create_default_context(cafile=key + ".crt")
    client.check_hostname = False
    return server, client


@case
async def tls():
    ours, theirs = contexts()

    async def start():
        return await asyncio.start_server(echo, ADDRESS, 0, ssl=ours)

    def connect(server):
        port = server.sockets[0].getsockname()[1]
        return lambda: asyncio.open_connection(ADDRESS, port, ssl=theirs)
    seen = await exercise(start, connect)

    # A plain stream that becomes one with TLS.
    async def upgrade(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        await writer.start_tls(ours)
        await echo(reader, writer)
    server = await asyncio.start_server(upgrade, ADDRESS, 0)
    reader, writer = await asyncio.open_connection(ADDRESS, server.sockets[0].getsockname()[1])
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go\n"
    await writer.start_tls(theirs)
    writer.write(data_of(200000))
    seen.append(digest(await reader.readexactly(200000)))
    writer.close()
    server.close()
    return seen


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer=None):
        self.answer, self.got = answer, asyncio.Queue()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if self.answer:
            self.transport.sendto(self.answer + data, addr)
        else:
            self.got.put_nowait(data)

    def error_received(self, exc):
        self.got.put_nowait(type(exc).__name__)


@case
async def datagrams():
    loop, seen = asyncio.get_running_loop(), []
    server, _ = await loop.create_datagram_endpoint(lambda: Datagrams(b"re: "), local_addr=(ADDRESS, 0))
    where = server.get_extra_info("sockname")
    client, protocol = await loop.create_datagram_endpoint(Datagrams, remote_addr=where)
    for turn in range(300):
        client.sendto(b"datagram %d" % turn)
        assert await protocol.got.get() == b"re: datagram %d" % turn
    for size in (1, 1472, 9000, 65000):
        client.sendto(data_of(size))
        seen.append(digest(await protocol.got.get()))
    for burst in range(20):
        for i in range(20):
            client.sendto(b"%d %d" % (burst, i))
        assert [await protocol.got.get() for _ in range(20)] == [b"re: %d %d" % (burst, i) for i in range(20)]
    # One that is not connected, of several peers.
    many, others = await loop.create_datagram_endpoint(Datagrams, local_addr=(ADDRESS, 0))
    for turn in range(50):
        many.sendto(b"from %d" % turn, where)
        seen.append((await others.got.get()).decode())
    # The server is gone: the connected one is told so.
    server.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(100):
        client.sendto(b"nobody")
        try:
            seen.append(await asyncio.wait_for(protocol.got.get(), 1))
            break
        except asyncio.TimeoutError:
            continue
    client.close()
    many.close()
    return seen


@case
async def subprocesses():
    async def run(*argv, data=None, **options):
        process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE,
                                                       stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **options)
        out, errors = await process.communicate(data)
        return [process.returncode, digest(out), digest(errors)]
    seen = [await run("/bin/echo", "hello"), await run("/bin/cat", data=data_of(2 << 20)),
            await run("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), await run("/bin/sh", "-c", "kill -TERM $$"),
            await asyncio.gather(*[run("/bin/cat", data=data_of(i * 7001, i)) for i in range(25)])]
    try:
        await run("/none")
    except FileNotFoundError as error:
        seen.append(type(error).__name__)
    # Talking in turns with one that lives on, and its end.
    process = await asyncio.create_subprocess_exec("/bin/cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    for turn in range(200):
        process.stdin.write(b"line %d\n" % turn)
        assert await process.stdout.readline() == b"line %d\n" % turn
    process.kill()
    seen.append(await process.wait())
    # Its pipes come from elsewhere: connect_read_pipe and connect_write_pipe.
    loop = asyncio.get_running_loop()
    ends = os.pipe()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ends[0], "rb"))
    writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ends[1], "wb"))
    writing.write(data_of(500000))
    seen.append(digest(await reader.readexactly(500000)))
    writing.close()
    seen.append(len(await reader.read()))
    return seen


@case
async def plain_sockets():
    """loop.sock_*: the program reads and writes, libuv's polls watch."""
    loop, seen = asyncio.get_running_loop(), []
    listener = socket.create_server((ADDRESS, 0))
    listener.setblocking(False)

    async def serve(count):
        for _ in range(count):
            conn, _ = await loop.sock_accept(listener)
            tasks.append(asyncio.ensure_future(answer(conn)))

    async def answer(conn):
        with conn:
            while data := await loop.sock_recv(conn, 50000):
                await loop.sock_sendall(conn, data)

    async def ask(i):
        with socket.socket() as conn:
            conn.setblocking(False)
            await loop.sock_connect(conn, listener.getsockname())
            data, got = data_of(i * 40009, i), bytearray()
            sending = asyncio.ensure_future(loop.sock_sendall(conn, data))
            buffer = bytearray(30000)
            while len(got) < len(data):
                count = await loop.sock_recv_into(conn, buffer)
                got += buffer[:count]
            await sending
            assert got == data
            return len(got)
    tasks = [asyncio.ensure_future(serve(20))]
    seen.append(await asyncio.gather(*[ask(i) for i in range(20)]))
    await asyncio.gather(*tasks)
    await asyncio.gather(*tasks[1:])
    # add_reader and add_writer, removed inside their own callbacks; the fd is closed and its number comes again.
    for turn in range(50):
        a, b = socket.socketpair()
        done = loop.create_future()
        loop.add_writer(a, lambda a=a: (loop.remove_writer(a), a.send(b"x")))
        loop.add_reader(b, lambda b=b, done=done: (loop.remove_reader(b), done.set_result(b.recv(9))))
        assert await done == b"x"
        a.close()
        b.close()
    # A socket with a protocol of its own, then taken back by its number.
    a, b = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=a)
    peer, other = await asyncio.open_connection(sock=b)
    for turn in range(100):
        writer.write(b"ping")
        other.write(await peer.readexactly(4))
        assert await reader.readexactly(4) == b"ping"
    writer.close()
    seen.append(len(await peer.read()))
    other.close()
    listener.close()
    return seen


@case
async def paused_reads():
    """A transport that is paused: what comes then, the program reads itself."""
    loop, seen = asyncio.get_running_loop(), []

    class Paused(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.count, self.paused = transport, 0, loop.create_future()

        def data_received(self, data):
            self.count += 1
            if self.count < 30:
                self.transport.write(data)
            else:
                self.transport.pause_reading()
                self.paused.set_result(None)

    made = asyncio.Queue()

    def make():
        made.put_nowait(Paused())
        return made._queue[-1]
    server = await loop.create_server(make, ADDRESS, 0)
    for delay in (0, 0, 0, 0.001, 0.02):
        a = socket.socket()
        a.setblocking(False)
        await loop.sock_connect(a, server.sockets[0].getsockname())
        protocol = await made.get()
        for turn in range(30):
            await loop.sock_sendall(a, b"again")
            if turn < 29:
                assert await loop.sock_recv(a, 100) == b"again"
        await protocol.paused
        await loop.sock_sendall(a, b"more")
        await asyncio.sleep(delay)
        transport = protocol.transport
        while True: # TCP may take its time
            try:
                seen.append(os.read(transport.get_extra_info("socket").fileno(), 100).decode())
                break
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await loop.sock_sendall(a, b"and again")
        transport.resume_reading()
        while protocol.count < 31:
            await asyncio.sleep(0)
        transport.close()
        a.close()
    server.close()
    return seen


@case
async def loop_itself():
    loop, seen, order = asyncio.get_running_loop(), [], []
    for delay in (0.03, 0.01, 0.02, 0):
        loop.call_later(delay, order.append, delay)
    await asyncio.sleep(0.06)
    seen.append(order)
    # Other threads: call_soon_threadsafe, executors.
    done = loop.create_future()
    count = [0]

    def from_thread():
        count[0] += 1
        if count[0] == 4000:
            done.set_result(None)
    threads = [threading.Thread(target=lambda: [loop.call_soon_threadsafe(from_thread) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    await done
    for thread in threads:
        thread.join()
    seen.append(count[0])
    seen.append(sum(await asyncio.gather(*[loop.run_in_executor(None, pow, i, 3) for i in range(200)])))
    told = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, told.append, number.name)
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR2)
    while "SIGUSR2" not in told:
        await asyncio.sleep(0.001)
    seen.append(sorted(set(told)))
    found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    seen.append(found[0][4])
    # A second loop in a thread of its own, while this one goes on.
    def second():
        async def inner():
            server = await asyncio.start_server(echo, ADDRESS, 0)
            port = server.sockets[0].getsockname()[1]
            sizes = await asyncio.gather(*[talk(lambda: asyncio.open_connection(ADDRESS, port), 20000, i) for i in range(10)])
            server.close()
            return sizes
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(inner())
    seen.append(await asyncio.gather(*[loop.run_in_executor(None, second) for _ in range(3)]))
    return seen


@case
async def serve():
    """For the test outside: a server that ends by SIGTERM."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    server = await asyncio.start_server(echo, ADDRESS, 0)
    path = os.path.join(DIRECTORY, "port")
    with open(path + ".tmp", "w") as file:
        file.write(str(server.sockets[0].getsockname()[1]))
    os.rename(path + ".tmp", path)
    await told.wait()
    server.close()
    return "closed"


async def main():
    return await CASES[CASE]()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as only:
    print(json.dumps(only.run(main())))
