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
const net = require('net');
const path = require('path');
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
        const workers = [0, 1].map(() => cluster.fork({ CLUSTER_PORT: where.port }));
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
        console.log(JSON.stringify(seen));
    }
}).catch((error) => {
    console.error(error);
    process.exit(1);
});
