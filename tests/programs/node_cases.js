// SPDX-License-Identifier: MIT
//
// What the node tests do inside node: `node node_cases.js CASE ADDRESS DIRECTORY`
// runs one case, both sides of it in one process (and its children), prints what
// it saw as JSON and ends by itself: a handle that stays would keep it alive.
'use strict';

const [name, address, directory] = process.argv.slice(2);
const cases = {};

const assert = require('assert');
const childProcess = require('child_process');
const cluster = require('cluster');
const crypto = require('crypto');
const dgram = require('dgram');
const dns = require('dns');
const events = require('events');
const fs = require('fs');
const http = require('http');
const https = require('https');
const net = require('net');
const path = require('path');
const tls = require('tls');
const { Readable } = require('stream');
const { pipeline } = require('stream/promises');

// The same bytes on every run and in every version.
function bytes(size, seed = 1) {
    const data = Buffer.alloc(size);
    let state = seed * 2654435761 >>> 0;
    for (let i = 0; i < size; i++) {
        state = (state * 1664525 + 1013904223) >>> 0;
        data[i] = state >>> 24;
    }
    return data;
}

const digest = (data) => crypto.createHash('sha1').update(data).digest('hex');

async function listen(server, where = { host: address, port: 0 }) {
    server.listen(where);
    await events.once(server, 'listening');
    return where.path ? { path: where.path } : { host: address, port: server.address().port };
}

const close = (server) => new Promise((resolve) => server.close(resolve));

function request(where, options, body) {
    return new Promise((resolve, reject) => {
        const one = http.request({ ...where, ...options }, (response) => {
            const parts = [];
            response.on('data', (part) => parts.push(part));
            response.on('end', () => resolve({ status: response.statusCode, body: Buffer.concat(parts) }));
            response.on('error', reject);
        });
        one.on('error', reject);
        one.end(body);
    });
}

function echoServer() {
    const server = http.createServer((incoming, outgoing) => {
        const parts = [];
        incoming.on('data', (part) => parts.push(part));
        incoming.on('end', () => {
            if (incoming.url.startsWith('/bytes/')) {
                outgoing.end(bytes(Number(incoming.url.slice(7))));
            } else if (incoming.url === '/chunks') {
                let left = 20;
                const more = () => left-- ? (outgoing.write(bytes(1000, left + 1)), setImmediate(more)) : outgoing.end();
                more();
            } else {
                outgoing.statusCode = incoming.url === '/missing' ? 404 : 200;
                outgoing.end(Buffer.concat(parts));
            }
        });
    });
    server.keepAliveTimeout = 60000;
    return server;
}

cases.http_keep_alive = async () => {
    const server = echoServer();
    const where = await listen(server);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 20 });
    const seen = [];
    const all = [];
    for (let i = 0; i < 600; i++) {
        const body = bytes(i * 13 % 3000, i + 1);
        all.push(request(where, { agent, method: 'POST', path: '/echo' }, body).then((reply) => {
            assert.strictEqual(reply.status, 200);
            assert(reply.body.equals(body));
        }));
    }
    await Promise.all(all);
    for (const size of [0, 1, 1000, 65536, 65537, 1 << 20, 5 << 20]) {
        const reply = await request(where, { agent, path: '/bytes/' + size });
        assert(reply.body.equals(bytes(size)));
        seen.push(reply.body.length);
    }
    seen.push(digest((await request(where, { agent, path: '/chunks' })).body));
    seen.push((await request(where, { agent, path: '/missing' })).status);
    agent.destroy();
    await close(server);
    return seen;
};

cases.http_close = async () => {
    const server = echoServer();
    const where = await listen(server);
    for (let turn = 0; turn < 30; turn++) {
        await Promise.all(Array.from({ length: 10 }, async (_, i) => {
            const reply = await request(where, { agent: false, path: '/bytes/' + i * 1000 });
            assert(reply.body.equals(bytes(i * 1000)));
        }));
    }
    await close(server);
    await assert.rejects(request(where, { agent: false, path: '/' }), { code: 'ECONNREFUSED' });
    return 300;
};

cases.files = async () => {
    const seen = [];
    const data = bytes(3 << 20);
    await Promise.all(Array.from({ length: 40 }, async (_, i) => {
        const file = path.join(directory, 'file' + i);
        await fs.promises.writeFile(file, data.subarray(0, i * 70000));
        await fs.promises.appendFile(file, 'end');
        const back = await fs.promises.readFile(file);
        assert(back.equals(Buffer.concat([data.subarray(0, i * 70000), Buffer.from('end')])));
        assert.strictEqual((await fs.promises.stat(file)).size, i * 70000 + 3);
        await fs.promises.rename(file, file + '.new');
        const handle = await fs.promises.open(file + '.new', 'r+');
        await handle.truncate(10);
        await handle.sync();
        await handle.close();
        await fs.promises.copyFile(file + '.new', file);
        await fs.promises.unlink(file + '.new');
    }));
    seen.push((await fs.promises.readdir(directory)).length);
    await pipeline(fs.createReadStream(path.join(directory, 'file7')), fs.createWriteStream(path.join(directory, 'copy')));
    seen.push((await fs.promises.readFile(path.join(directory, 'copy'))).length);
    await assert.rejects(fs.promises.open(path.join(directory, 'none')), { code: 'ENOENT' });
    // A watcher: inotify in the loop.
    const watched = path.join(directory, 'watched');
    await fs.promises.mkdir(watched);
    const watcher = fs.watch(watched);
    const change = events.once(watcher, 'change');
    await fs.promises.writeFile(path.join(watched, 'new'), 'x');
    seen.push((await change)[1]);
    watcher.close();
    return seen;
};

cases.children = async () => {
    const seen = [];
    const run = (program, args, input) => new Promise((resolve, reject) => {
        const child = childProcess.spawn(program, args);
        const [out, errors] = [[], []];
        child.stdout.on('data', (part) => out.push(part));
        child.stderr.on('data', (part) => errors.push(part));
        child.on('error', reject);
        child.on('close', (status, signal) => resolve([status, signal, digest(Buffer.concat(out)),
            digest(Buffer.concat(errors))]));
        child.stdin.on('error', () => {});
        child.stdin.end(input);
    });
    seen.push(await run('/bin/echo', ['hello']));
    seen.push(await run('/bin/cat', [], bytes(2 << 20)));
    seen.push(await run('/bin/sh', ['-c', 'echo out; echo err >&2; exit 3']));
    seen.push(await run('/bin/sh', ['-c', 'kill -TERM $$']));
    seen.push((await run('/none', []).catch((error) => error.code)));
    const many = await Promise.all(Array.from({ length: 30 }, (_, i) => run('/bin/cat', [], bytes(i * 3000))));
    seen.push(many);
    seen.push(childProcess.execSync('echo sync').toString());
    // A node child with a channel; messages, and a passed connection.
    const child = childProcess.fork(__filename, ['child', address, directory]);
    child.send({ ping: 1 });
    seen.push((await events.once(child, 'message'))[0]);
    const server = net.createServer({ pauseOnConnect: true }, (connection) => child.send('take', connection));
    const where = await listen(server);
    const client = net.connect(where);
    client.write('to the child');
    seen.push((await events.once(client, 'data'))[0].toString());
    const ended = events.once(client, 'end');
    client.end();
    await ended;
    const exited = events.once(child, 'exit');
    child.disconnect();
    seen.push(await exited);
    // Not awaited: it would ask the child for its connections.
    server.close();
    const killed = childProcess.spawn('/bin/sleep', ['1000']);
    const end = events.once(killed, 'exit');
    killed.kill('SIGKILL');
    seen.push(await end);
    return seen;
};

// The other end of `children`.
cases.child = () => new Promise((resolve) => {
    process.on('message', (message, connection) => {
        if (connection) {
            connection.on('data', (data) => connection.write('child got ' + data));
            connection.on('end', () => connection.end());
            connection.resume();
        } else {
            process.send({ pong: message.ping });
        }
    });
    process.on('disconnect', resolve);
});

async function echoOver(where, seen) {
    const server = net.createServer({ allowHalfOpen: true }, (connection) => connection.pipe(connection));
    where = await listen(server, where);
    await Promise.all(Array.from({ length: 50 }, async (_, i) => {
        const data = bytes(i * 20011, i + 1);
        const client = net.connect({ ...where, allowHalfOpen: true });
        const parts = [];
        client.on('data', (part) => parts.push(part));
        client.end(data);
        await events.once(client, 'end');
        assert(Buffer.concat(parts).equals(data));
    }));
    // Lock-step.
    const client = net.connect(where);
    for (let i = 0; i < 500; i++) {
        client.write('turn ' + i);
        assert.strictEqual((await events.once(client, 'data'))[0].toString(), 'turn ' + i);
    }
    client.destroy();
    // Back-pressure: nobody reads for a while.
    const slow = net.connect(where);
    await events.once(slow, 'connect');
    slow.pause();
    const data = bytes(8 << 20);
    slow.end(data);
    const parts = [];
    await new Promise((resolve) => setImmediate(resolve));
    slow.on('data', (part) => parts.push(part));
    slow.resume();
    await events.once(slow, 'close');
    assert(Buffer.concat(parts).equals(data));
    await close(server);
    seen.push('echoed');
}

cases.net_echo = async () => {
    const seen = [];
    await echoOver({ host: address, port: 0 }, seen);
    await echoOver({ path: path.join(directory, 'socket') }, seen);
    // Resets, refusals, time-outs.
    const server = net.createServer((connection) => {
        connection.on('error', (error) => seen.push('server saw ' + error.code));
        connection.once('data', () => connection.resetAndDestroy ? connection.resetAndDestroy() : connection.destroy());
    });
    const where = await listen(server);
    const client = net.connect(where);
    client.write('x');
    client.on('error', () => {});
    client.resume();
    await new Promise((resolve) => client.on('close', resolve));
    const idle = net.connect(where);
    idle.setTimeout(50);
    await events.once(idle, 'timeout');
    idle.destroy();
    await close(server);
    const refused = net.connect(where);
    seen.push((await events.once(refused, 'error').catch((error) => [error]))[0].code);
    return seen;
};

// Bodies that are longer than any buffer, both ways at once; one that is broken off.
cases.http_streaming = async () => {
    const seen = [];
    const data = bytes(6 << 20);
    const server = http.createServer((incoming, outgoing) => {
        if (incoming.url === '/back') {
            pipeline(incoming, outgoing).catch((error) => seen.push('server saw ' + error.code));
        } else if (incoming.url === '/slow') {
            outgoing.write(data.subarray(0, 100000));
        } else {
            pipeline(Readable.from(parts(data, 50000)), outgoing).catch(() => {});
        }
    });
    const where = await listen(server);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
    for (let turn = 0; turn < 3; turn++) {
        const one = http.request({ ...where, agent, method: 'POST', path: '/back' });
        const sending = pipeline(Readable.from(parts(data, 70001)), one);
        const [response] = await events.once(one, 'response');
        seen.push(digest(await whole(response)));
        await sending;
    }
    seen.push(await Promise.all(Array.from({ length: 6 }, async () => {
        const one = http.get({ ...where, agent, path: '/data' });
        return digest(await whole((await events.once(one, 'response'))[0]));
    })));
    // Nobody reads, then all is read.
    const lazy = http.get({ ...where, agent, path: '/data' });
    const [response] = await events.once(lazy, 'response');
    await new Promise((resolve) => setTimeout(resolve, 20));
    seen.push(digest(await whole(response)));
    const broken = http.get({ ...where, agent: false, path: '/slow' });
    const [part] = await events.once(broken, 'response');
    await events.once(part, 'data');
    broken.destroy();
    await new Promise((resolve) => part.once('close', resolve));
    const asking = http.request({ ...where, agent, method: 'POST', path: '/back', headers: { Expect: '100-continue' } });
    asking.flushHeaders();
    await events.once(asking, 'continue');
    asking.end('after continue');
    seen.push((await whole((await events.once(asking, 'response'))[0])).toString());
    agent.destroy();
    await close(server);
    return seen;
};

function* parts(data, size) {
    for (let at = 0; at < data.length; at += size) {
        yield data.subarray(at, at + size);
    }
}

async function whole(stream) {
    const got = [];
    for await (const part of stream) {
        got.push(part);
    }
    return Buffer.concat(got);
}

// Either end says that it ends first, on TCP and on pipes; and writes that are many in one turn.
cases.half_open = async () => {
    const seen = [];
    for (const where of [{ host: address, port: 0 }, { path: path.join(directory, 'half') }]) {
        const server = net.createServer({ allowHalfOpen: true }, async (connection) => {
            const got = await whole(connection);
            for (const part of parts(got, 10000)) {
                connection.write(part);
            }
            connection.end('the end');
        });
        const at = await listen(server, where);
        seen.push(await Promise.all([0, 1, 65536, 1 << 20, 4 << 20].map(async (size) => {
            const client = net.connect({ ...at, allowHalfOpen: true });
            client.cork();
            for (const part of parts(bytes(size), 999)) {
                client.write(part);
            }
            client.uncork();
            client.end();
            const got = await whole(client);
            return [got.length, digest(got)];
        })));
        await close(server);
        const first = net.createServer({ allowHalfOpen: true }, (connection) => {
            connection.end('hello');
            connection.on('data', (data) => seen.push(data.length));
        });
        const there = await listen(first, where);
        const client = net.connect({ ...there, allowHalfOpen: true });
        seen.push((await whole(client)).toString());
        client.end('only now');
        await close(first);
    }
    return seen;
};

// Connections and listeners go to children by their channels; those have servers of their own then.
cases.passed_handles = async () => {
    const children = [0, 1, 2].map(() => childProcess.fork(__filename, ['taker', address, directory]));
    const seen = [];
    await Promise.all(children.map((child) => events.once(child, 'message')));
    const server = net.createServer();
    const where = await listen(server);
    const next = children.map((child) => events.once(child, 'message'));
    children.forEach((child) => child.send('server', server));
    await Promise.all(next);
    server.close();
    const asked = await Promise.all(Array.from({ length: 60 }, async (_, i) => {
        const client = net.connect(where);
        client.end(bytes(i * 3001, i));
        return (await whole(client)).equals(bytes(i * 3001, i));
    }));
    seen.push(asked.filter(Boolean).length);
    // A connection that was read from here before it is passed.
    const giver = net.createServer((connection) => {
        connection.once('data', (data) => {
            connection.pause();
            children[data.length % 3].send('connection', connection);
        });
    });
    const there = await listen(giver);
    seen.push(await Promise.all(Array.from({ length: 12 }, async (_, i) => {
        const client = net.connect(there);
        client.write('x'.repeat(i + 1));
        const [hello] = await events.once(client, 'data');
        client.end('goodbye');
        return hello + ' ' + await whole(client);
    })));
    const exits = children.map((child) => events.once(child, 'exit'));
    children.forEach((child) => child.disconnect());
    seen.push(await Promise.all(exits));
    giver.close();
    return seen;
};

cases.taker = () => new Promise((resolve) => {
    let server;
    process.on('message', (what, handle) => {
        if (what === 'server') {
            server = handle;
            server.on('connection', (connection) => {
                connection.allowHalfOpen = true;
                connection.pipe(connection);
            });
            process.send('serves');
        } else {
            handle.write('taken');
            handle.on('data', (data) => handle.end('got ' + data));
            handle.resume();
        }
    });
    process.on('disconnect', () => (server ? server.close(() => resolve()) : resolve()));
    process.send('ready');
});

cases.file_streams = async () => {
    const seen = [];
    const data = bytes(5 << 20);
    const file = (name) => path.join(directory, name);
    await Promise.all(Array.from({ length: 8 }, (_, i) =>
        pipeline(Readable.from(parts(data.subarray(i * 1000), 30000 + i)), fs.createWriteStream(file('stream' + i)))));
    for (let i = 0; i < 8; i++) {
        assert((await fs.promises.readFile(file('stream' + i))).equals(data.subarray(i * 1000)));
    }
    const start = 123457;
    seen.push(digest(await whole(fs.createReadStream(file('stream0'), { start, end: start + 999999, highWaterMark: 5000 }))));
    // Positions, vectors, ends.
    const handle = await fs.promises.open(file('at'), 'w+');
    await Promise.all(Array.from({ length: 100 }, (_, i) => handle.write(data, i * 4096, 4096, (99 - i) * 4096)));
    const back = Buffer.alloc(4096 * 100);
    await Promise.all(Array.from({ length: 100 }, (_, i) => handle.read(back, i * 4096, 4096, i * 4096)));
    seen.push(digest(back));
    seen.push((await handle.writev([data.subarray(0, 10), data.subarray(10, 4000), Buffer.alloc(0)], 50)).bytesWritten);
    const vector = [Buffer.alloc(20), Buffer.alloc(5000)];
    seen.push((await handle.readv(vector, 40)).bytesRead, digest(Buffer.concat(vector)));
    seen.push((await handle.read(back, 0, 100, 1 << 30)).bytesRead);
    await handle.datasync();
    await handle.close();
    // What is cancelled, before it starts or in its middle.
    const stop = new AbortController();
    const all = Array.from({ length: 20 }, () => fs.promises.readFile(file('stream1'), { signal: stop.signal }));
    setImmediate(() => stop.abort());
    seen.push((await Promise.allSettled(all)).map((one) => one.reason ? one.reason.name : one.value.length)
        .filter((one) => one !== 'AbortError' && one !== data.length - 1000));
    const half = fs.createReadStream(file('stream2'));
    await events.once(half, 'data');
    half.destroy();
    await events.once(half, 'close');
    for (const [wrong, flags] of [[file('none/x'), 'r'], [directory, 'w'], [file('stream0'), 'wx']]) {
        seen.push(await fs.promises.open(wrong, flags).catch((error) => error.code));
    }
    // Links, times, directories, changes.
    await fs.promises.symlink(file('stream0'), file('link'));
    await fs.promises.link(file('stream0'), file('hard'));
    await fs.promises.utimes(file('link'), 1000, 2000);
    const stat = await fs.promises.stat(file('hard'));
    seen.push([await fs.promises.readlink(file('link')) === file('stream0'), stat.nlink, stat.mtimeMs, stat.size]);
    await fs.promises.mkdir(file('a/b/c'), { recursive: true });
    const watcher = fs.watch(file('a'));
    const changes = new Set();
    watcher.on('change', (kind, name) => changes.add(name));
    for (let i = 0; i < 20; i++) {
        await fs.promises.writeFile(file('a/new' + i), String(i));
    }
    while (changes.size < 20) {
        await new Promise((resolve) => setTimeout(resolve, 1));
    }
    watcher.close();
    seen.push((await fs.promises.readdir(file('a'))).sort());
    await fs.promises.rm(file('a'), { recursive: true });
    seen.push(fs.existsSync(file('a')));
    fs.writeFileSync(file('sync'), data);
    seen.push(fs.readFileSync(file('sync')).equals(data));
    return seen;
};

cases.datagrams = async () => {
    const seen = [];
    const bound = () => new Promise((resolve) => {
        const one = dgram.createSocket({ type: 'udp4', recvBufferSize: 1 << 20, sendBufferSize: 1 << 20 });
        one.bind(0, address, () => resolve(one));
    });
    const server = await bound();
    server.on('message', (message, from) => server.send([Buffer.from('re: '), message], from.port, from.address));
    const { port } = server.address();
    const client = dgram.createSocket('udp4');
    await new Promise((resolve) => client.connect(port, address, resolve));
    const inbox = [];
    let wake = () => {};
    client.on('message', (message) => { inbox.push(message); wake(); });
    const take = async (count) => {
        while (inbox.length < count) {
            await new Promise((resolve) => { wake = resolve; });
        }
        return inbox.splice(0, count);
    };
    for (let burst = 0; burst < 30; burst++) {
        for (let i = 0; i < 20; i++) {
            client.send(`${burst} ${i}`);
        }
        seen.push((await take(20)).map(String).join());
    }
    for (const size of [0, 1, 1472, 9000, 65000]) {
        client.send(bytes(size));
        seen.push(digest((await take(1))[0]));
    }
    const told = new Promise((resolve) => client.send(bytes(70000), (error) => resolve(error && error.code)));
    seen.push(await told);
    // Many peers at once.
    const peers = await Promise.all(Array.from({ length: 20 }, bound));
    seen.push(await Promise.all(peers.map(async (peer, i) => {
        const reply = events.once(peer, 'message');
        peer.send('from ' + i, port, address);
        return String((await reply)[0]);
    })));
    peers.forEach((peer) => peer.close());
    // Its server is gone.
    server.close();
    await new Promise((resolve) => setImmediate(resolve));
    const refused = events.once(client, 'error').catch((error) => [error]);
    client.send('nobody');
    seen.push((await refused)[0].code);
    client.close();
    return seen;
};

cases.tls = async () => {
    const key = path.join(directory, 'key.pem');
    childProcess.execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out',
        key + '.crt', '-subj', '/CN=test', '-days', '2'], { stdio: 'ignore' });
    const ours = { key: fs.readFileSync(key), cert: fs.readFileSync(key + '.crt') };
    const theirs = { ca: ours.cert, servername: 'test' };
    const seen = [];
    const server = tls.createServer({ ...ours, allowHalfOpen: true }, (connection) => {
        connection.on('error', (error) => seen.push('server saw ' + error.code));
        connection.pipe(connection);
    });
    const where = await listen(server);
    seen.push(await Promise.all(Array.from({ length: 12 }, async (_, i) => {
        const client = tls.connect({ ...where, ...theirs });
        const data = bytes(i * 150001, i + 1);
        const got = [];
        client.on('data', (part) => got.push(part));
        client.end(data);
        await events.once(client, 'end');
        return Buffer.concat(got).equals(data);
    })));
    const client = tls.connect({ ...where, ...theirs });
    for (let i = 0; i < 200; i++) {
        client.write('turn ' + i);
        assert.strictEqual((await events.once(client, 'data'))[0].toString(), 'turn ' + i);
    }
    seen.push(client.authorized);
    client.destroy();
    const wrong = tls.connect({ ...where, servername: 'test' });
    seen.push((await events.once(wrong, 'error').catch((error) => [error]))[0].code);
    // Not awaited: a handshake that failed may still count as a connection.
    server.close();
    const web = https.createServer(ours, (incoming, outgoing) => incoming.pipe(outgoing));
    const there = await listen(web);
    const agent = new https.Agent({ keepAlive: true, maxSockets: 5 });
    seen.push(await Promise.all(Array.from({ length: 50 }, async (_, i) => {
        const one = https.request({ ...there, ...theirs, agent, method: 'POST' });
        one.end(bytes(i * 2000));
        return digest(await whole((await events.once(one, 'response'))[0]));
    })));
    agent.destroy();
    await close(web);
    return seen.map((one) => String(one)).sort();
};

cases.dns_and_udp = async () => {
    const seen = [(await dns.promises.lookup('localhost', { family: 4 })).address];
    const [a, b] = [dgram.createSocket('udp4'), dgram.createSocket('udp4')];
    await Promise.all([a, b].map((one) => new Promise((resolve) => one.bind(0, address, resolve))));
    b.on('message', (message, from) => b.send(Buffer.concat([Buffer.from('re: '), message]), from.port, from.address));
    for (let i = 0; i < 200; i++) {
        const reply = events.once(a, 'message');
        a.send('datagram ' + i, b.address().port, address);
        assert.strictEqual((await reply)[0].toString(), 're: datagram ' + i);
    }
    a.close();
    b.close();
    return seen;
};

cases.timers_and_workers = async () => {
    const { Worker } = require('worker_threads');
    const order = [];
    await Promise.all([30, 10, 20, 0, 5].map((delay) => new Promise((resolve) => setTimeout(() => {
        order.push(delay);
        resolve();
    }, delay))));
    // Each worker has a loop of its own; async handles cross between them.
    const source = `const { parentPort } = require('worker_threads'); const net = require('net');
        const server = net.createServer((c) => c.pipe(c)).listen(0, '${address}', () => {
            const c = net.connect(server.address().port, '${address}');
            c.on('data', (d) => { parentPort.postMessage(d.toString()); c.end(); server.close(); });
            c.write('from a worker'); });
        parentPort.on('message', (m) => { parentPort.postMessage(m * 2); if (m === 99) parentPort.unref(); });`;
    const results = await Promise.all(Array.from({ length: 3 }, () => new Promise((resolve, reject) => {
        const worker = new Worker(source, { eval: true });
        const got = [];
        worker.on('message', (message) => got.push(message));
        worker.on('error', reject);
        worker.on('exit', () => resolve(got.map(String).sort()));
        for (let i = 0; i < 100; i++) {
            worker.postMessage(i);
        }
    })));
    return [order, results.map((got) => got.length), results[0].includes('from a worker')];
};

cases.standard_streams = async () => {
    // Reads what it is given by a pipe and writes it back: pipes as fds 0 and 1.
    const child = childProcess.spawn(process.execPath, [__filename, 'cat', address, directory], {
        stdio: ['pipe', 'pipe', 'inherit'] });
    const data = bytes(1 << 20);
    const parts = [];
    child.stdout.on('data', (part) => parts.push(part));
    child.stdin.end(data);
    const [status] = await events.once(child, 'close');
    assert(Buffer.concat(parts).equals(data));
    return [status, data.length];
};

cases.cat = async () => {
    await pipeline(process.stdin, process.stdout);
};

cases.cluster = async () => {
    if (!cluster.isPrimary) {
        const server = http.createServer((_, outgoing) => outgoing.end('worker'));
        server.listen({ host: address, port: Number(process.env.CLUSTER_PORT) });
        process.on('message', () => {
            server.close(() => process.disconnect());
            if (server.closeIdleConnections) {
                server.closeIdleConnections();
            }
        });
        return new Promise((resolve) => process.on('disconnect', resolve));
    }
    const seen = [];
    for (const policy of [cluster.SCHED_RR, cluster.SCHED_NONE]) {
        const probe = net.createServer();
        const where = await listen(probe);
        await close(probe);
        cluster.schedulingPolicy = policy;
        const workers = [0, 1, 2].map(() => cluster.fork({ CLUSTER_PORT: where.port }));
        await Promise.all(workers.map((worker) => events.once(worker, 'listening')));
        const replies = await Promise.all(Array.from({ length: 200 }, () => request(where, { agent: false, path: '/' })));
        seen.push(replies.filter((reply) => reply.body.toString() === 'worker').length);
        const exits = workers.map((worker) => events.once(worker, 'exit'));
        workers.forEach((worker) => worker.send('end'));
        for (const exit of exits) {
            seen.push((await exit)[0]);
        }
    }
    return seen;
};

// A server for the test outside: it prints its port and serves until SIGTERM.
cases.serve = async () => {
    const server = echoServer();
    const where = await listen(server);
    const told = events.once(process, 'SIGTERM'); // before anybody can know that we serve
    fs.writeFileSync(path.join(directory, 'port.tmp'), String(where.port));
    fs.renameSync(path.join(directory, 'port.tmp'), path.join(directory, 'port'));
    await told;
    const closed = close(server);
    server.closeAllConnections?.();
    await closed;
    return 'closed';
};

cases[name]().then((seen) => {
    if (seen !== undefined) {
        const { node, uv } = process.versions;
        console.log(JSON.stringify({ versions: { node, uv }, seen }));
    }
}).catch((error) => {
    console.error(error);
    process.exit(1);
});
