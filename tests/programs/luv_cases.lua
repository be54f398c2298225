-- SPDX-License-Identifier: MIT
-- What the luv tests do, in lua with lua-luv and in nvim, whose vim.loop is the same:
-- one case after the other, both sides of each in one process. Arguments, or in nvim the
-- variables ADDRESS, DIRECTORY, RESULTS: where to listen, where files may be, where the results go.
local uv = vim and vim.loop or require('luv')
local address, directory, results = os.getenv('ADDRESS'), os.getenv('DIRECTORY'), os.getenv('RESULTS')
local seen = {}

local function text(value)
  if type(value) ~= 'table' then return tostring(value) end
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for i, key in ipairs(keys) do keys[i] = tostring(key) .. '=' .. text(value[key]) end
  return '{' .. table.concat(keys, ',') .. '}'
end
local function note(...)
  local words = {}
  for i = 1, select('#', ...) do words[i] = text((select(i, ...))) end
  seen[#seen + 1] = table.concat(words, ' ')
end

-- Turns the loop until it is so.
local function wait(condition, what)
  if vim then
    assert(vim.wait(25000, condition, 1), what)
    return
  end
  local late = false
  local timer = uv.new_timer()
  timer:start(25000, 0, function() late = true end)
  while not condition() do
    assert(not late, what)
    uv.run('once')
  end
  timer:close()
end
local function done(count, what)
  local so_far = 0
  return function() so_far = so_far + 1 end, function() wait(function() return so_far >= count end, what) end
end
local function pattern(size, seed)
  local parts, state = {}, seed
  for i = 1, math.ceil(size / 64) do
    state = (state * 1103 + 12345) % 1000003
    parts[i] = string.format('%064d', state)
  end
  return table.concat(parts):sub(1, size)
end
local function sum(data)
  local total = 0
  for i = 1, #data, 97 do total = (total * 31 + data:byte(i)) % 1000000007 end
  return total
end

local function finish()
  local out = assert(io.open(results, 'w'))
  out:write(table.concat(seen, '\n'), '\n')
  out:close()
  if vim then vim.cmd('qall!') end
end

local numbers = 0
-- A stream that is read no more: what comes then is for who gets the fd from us. A process of
-- its own (a loop that had single events for long has no streams on the ring); not under the
-- shim, which does not see that the reads are stopped.
if os.getenv('READS') then
  for _, kind in ipairs({ 'tcp', 'pipe' }) do
    for _, delay in ipairs({ 0, 1, 20 }) do
      for _ = 1, 3 do
        local make = kind == 'tcp' and uv.new_tcp or function() return uv.new_pipe(false) end
        local server, client, conn = make(), make(), nil
        numbers = numbers + 1
        local path = directory .. '/reads' .. numbers
        if kind == 'tcp' then server:bind(address, 0) else server:bind(path) end
        local fds = uv.socketpair(nil, nil, { nonblock = true }, { nonblock = true })
        local left, right = uv.new_pipe(true), uv.new_pipe(true)
        left:open(fds[1])
        right:open(fds[2])
        local came, turns = nil, 0
        right:read_start(function(err, data)
          assert(not err and data, err)
          local taken = make()
          right:accept(taken)
          taken:read_start(function(_, more)
            came = more or 'nothing'
            taken:close()
          end)
        end)
        local function hand_on()
          left:write2('take it', conn, function() conn:close() end)
        end
        server:listen(5, function()
          conn = make()
          server:accept(conn)
          conn:read_start(function(_, data)
            turns = turns + 1
            if turns < 30 then
              conn:write(data)
              return
            end
            conn:read_stop()
            client:write('more', function()
              local timer = uv.new_timer()
              timer:start(delay, 0, function()
                timer:close()
                hand_on()
              end)
              client:shutdown()
            end)
          end)
        end)
        local function begin()
          client:read_start(function(_, data) if data then client:write(data) end end)
          client:write('again')
        end
        if kind == 'tcp' then
          client:connect(address, server:getsockname().port, begin)
        else
          client:connect(path, begin)
        end
        wait(function() return came end, 'what comes after a read was stopped')
        note(kind, delay, came)
        for _, handle in ipairs({ left, right, client, server }) do handle:close() end
      end
    end
  end
  uv.run()
  finish()
  return
end

-- Echoes to its end, and ends then.
local function echo(server)
  return function(err)
    assert(not err, err)
    local peer = server.make()
    assert(server.handle:accept(peer))
    peer:read_start(function(failed, data)
      if failed then
        peer:close()
      elseif data then
        peer:write(data)
      else
        peer:shutdown(function() peer:close() end)
      end
    end)
  end
end

local function streams(name, make, bind, connect)
  local server = { handle = make(), make = make }
  bind(server.handle)
  assert(server.handle:listen(128, echo(server)))
  local count, finished = done(30, name .. ' echo')
  local sums = {}
  for i = 1, 30 do
    local client, got = make(), {}
    connect(client, server.handle, function(err)
      assert(not err, err)
      local data = pattern(i * 7919, i)
      client:read_start(function(failed, part)
        assert(not failed, failed)
        if part then
          got[#got + 1] = part
          return
        end
        local all = table.concat(got)
        assert(all == data, 'other bytes came back')
        sums[i] = sum(all)
        client:close()
        count()
      end)
      -- Many writes in one turn, tables among them; then what is written at once, behind them.
      local at = 1
      while at <= #data - 3000 do
        client:write({ data:sub(at, at + 999), data:sub(at + 1000, at + 1999) })
        at = at + 2000
      end
      client:write(data:sub(at), function(failed)
        assert(not failed, failed)
        assert(client:get_write_queue_size() == 0, 'the queue is not empty after the last callback')
        client:shutdown()
      end)
    end)
  end
  finished()
  note(name, sums)
  -- Lock-step; read_stop and read_start between; try_write.
  local client, turn = make(), 0
  local step, stepped = done(200, name .. ' lock-step')
  connect(client, server.handle, function(err)
    assert(not err, err)
    local on_data
    function on_data(failed, data)
      assert(not failed and data == 'turn ' .. turn, data)
      turn = turn + 1
      if turn % 10 == 0 then
        client:read_stop()
        client:read_start(on_data)
      end
      if turn % 3 == 0 then
        assert(client:try_write('turn ' .. turn) == #('turn ' .. turn))
      else
        client:write('turn ' .. turn)
      end
      step()
    end
    client:read_start(on_data)
    client:write('turn 0')
  end)
  stepped()
  -- Nobody reads: writes queue up, and all of it comes when somebody does.
  client:read_stop()
  local slow, total = make(), 0
  connect(slow, server.handle, function(err)
    assert(not err, err)
    for i = 1, 60 do slow:write(pattern(100000, i)) end
    slow:shutdown(function()
      total = 0
    end)
  end)
  local pause = uv.new_timer()
  local all, ended = {}, false
  pause:start(20, 0, function()
    pause:close()
    slow:read_start(function(failed, data)
      assert(not failed, failed)
      if data then all[#all + 1] = data else ended = true end
    end)
  end)
  wait(function() return ended end, name .. ' slow reader')
  note(name, 'slow', #table.concat(all), sum(table.concat(all)))
  slow:close()
  -- Written, then closed at once: it comes.
  local last, came = make(), false
  local once = make()
  bind(once)
  once:listen(1, function()
    local peer, got = make(), 0
    once:accept(peer)
    peer:read_start(function(_, data)
      if data then got = got + #data return end
      note(name, 'written and closed', got)
      came = true
      peer:close()
      once:close()
    end)
  end)
  connect(last, once, function()
    last:write('one') last:write('two') last:write('three', function() last:close() end)
  end)
  wait(function() return came end, name .. ' written and closed')
  local walks = 0
  client:close(function() walks = 1 end)
  server.handle:close()
  wait(function() return walks == 1 end, 'closed')
end

streams('tcp', function() return uv.new_tcp() end,
  function(handle) assert(handle:bind(address, 0)) end,
  function(client, server, callback)
    local name = server:getsockname()
    client:connect(name.ip, name.port, callback)
  end)
local paths = {}
streams('pipe', function() return uv.new_pipe(false) end,
  function(handle)
    numbers = numbers + 1
    paths[handle] = directory .. '/pipe' .. numbers
    assert(handle:bind(paths[handle]))
  end,
  function(client, server, callback) client:connect(paths[server], callback) end)

-- A refused connection, a reset, options.
do
  local probe = uv.new_tcp()
  probe:bind(address, 0)
  local port = probe:getsockname().port
  probe:close()
  local refused, error = uv.new_tcp(), nil
  refused:connect(address, port, function(err) error = err end)
  wait(function() return error end, 'refused')
  note('refused', error)
  refused:close()
  local server = uv.new_tcp()
  server:bind(address, 0)
  local reset
  server:listen(5, function()
    local peer = uv.new_tcp()
    server:accept(peer)
    peer:read_start(function(err, data)
      reset = err or data or 'end'
      peer:close()
    end)
  end)
  local client = uv.new_tcp()
  client:connect(address, server:getsockname().port, function()
    note('options', client:nodelay(true), client:keepalive(true, 60), client:getpeername().ip == address)
    client:close_reset()
  end)
  wait(function() return reset end, 'reset')
  note('reset', reset)
  server:close()
end

-- Handles that are passed over a pipe.
do
  local fds = uv.socketpair(nil, nil, { nonblock = true }, { nonblock = true })
  local left, right = uv.new_pipe(true), uv.new_pipe(true)
  left:open(fds[1])
  right:open(fds[2])
  local server = uv.new_tcp()
  server:bind(address, 0)
  local taken
  right:read_start(function(err, data)
    assert(not err, err)
    note('passed', data, right:pending_count(), right:pending_type())
    taken = uv.new_tcp()
    right:accept(taken)
  end)
  left:write2('a handle', server)
  wait(function() return taken end, 'the handle comes')
  server:close()
  local greeted
  taken:listen(5, function()
    local peer = uv.new_tcp()
    taken:accept(peer)
    peer:write('from the passed one')
    peer:shutdown(function() peer:close() end)
  end)
  local client = uv.new_tcp()
  client:connect(address, taken:getsockname().port, function()
    client:read_start(function(_, data)
      if data then note('passed', data) else greeted = true end
    end)
  end)
  wait(function() return greeted end, 'the passed listener answers')
  for _, handle in ipairs({ left, right, taken, client }) do handle:close() end
end

-- Datagrams.
do
  local server, client = uv.new_udp(), uv.new_udp()
  server:bind(address, 0)
  client:bind(address, 0)
  local port = server:getsockname().port
  server:recv_start(function(err, data, from)
    assert(not err, err)
    if data then server:send('re: ' .. data, from.ip, from.port, function(failed) assert(not failed, failed) end) end
  end)
  local got = {}
  client:recv_start(function(err, data)
    assert(not err, err)
    if data then got[#got + 1] = data end
  end)
  for turn = 1, 100 do
    if turn % 2 == 0 then
      client:send('datagram ' .. turn, address, port, function(err) assert(not err, err) end)
    else
      assert(client:try_send('datagram ' .. turn, address, port) > 0)
    end
    wait(function() return #got == turn end, 'a datagram')
    assert(got[turn] == 're: datagram ' .. turn)
  end
  for burst = 1, 10 do
    got = {}
    for i = 1, 20 do client:send('burst ' .. i, address, port, function() end) end
    wait(function() return #got == 20 end, 'a burst')
    note('burst', #got, sum(table.concat(got, ',')))
  end
  got = {}
  for i, size in ipairs({ 1, 1472, 9000, 60000 }) do
    client:send(pattern(size, 3), address, port, function() end)
    wait(function() return #got == i end, 'a large one')
    note('datagram', #got[i], sum(got[i]))
  end
  client:recv_stop()
  local connected, answer = uv.new_udp(), nil
  connected:connect(address, port)
  connected:recv_start(function(_, data) answer = answer or data end)
  connected:send('connected', nil, nil, function() end)
  wait(function() return answer end, 'of a connected one')
  note('connected', answer, connected:getpeername().port == port, client:get_send_queue_size())
  for _, handle in ipairs({ server, client, connected }) do handle:close() end
end

-- Files: by callbacks and without.
do
  local file = directory .. '/file'
  local data = pattern(300000, 9)
  local count, finished = done(1, 'files')
  uv.fs_open(file, 'w+', 420, function(err, fd)
    assert(not err, err)
    local left = 30
    for i = 0, 29 do
      uv.fs_write(fd, data:sub(i * 10000 + 1, (i + 1) * 10000), i * 10000, function(failed, size)
        assert(not failed and size == 10000, failed)
        left = left - 1
        if left > 0 then return end
        uv.fs_fsync(fd, function()
          uv.fs_read(fd, 400000, 0, function(bad, all)
            assert(not bad, bad)
            note('file', all == data, uv.fs_fstat(fd).size)
            uv.fs_ftruncate(fd, 1234, function()
              uv.fs_read(fd, 5000, 1000, function(_, rest)
                note('truncated', #rest)
                uv.fs_close(fd, count)
              end)
            end)
          end)
        end)
      end)
    end
  end)
  finished()
  local fd = assert(uv.fs_open(file, 'r+', 420))
  note('sync', uv.fs_write(fd, { 'a', 'bc', 'def' }, 10), uv.fs_read(fd, 6, 10))
  uv.fs_close(fd)
  note('errors', select(3, uv.fs_open(directory .. '/none/x', 'r', 420)), select(3, uv.fs_open(directory, 'w', 420)))
  uv.fs_mkdir(directory .. '/made', 493)
  uv.fs_copyfile(file, directory .. '/made/copy')
  uv.fs_symlink(file, directory .. '/made/link')
  uv.fs_link(file, directory .. '/made/hard')
  uv.fs_utime(directory .. '/made/copy', 100, 200)
  uv.fs_chmod(directory .. '/made/copy', 256)
  local stat = uv.fs_stat(directory .. '/made/copy')
  note('stat', stat.size, stat.mtime.sec, stat.mode % 512, uv.fs_stat(file).nlink)
  local names = {}
  local request = uv.fs_scandir(directory .. '/made')
  while true do
    local name, kind = uv.fs_scandir_next(request)
    if not name then break end
    names[#names + 1] = name .. ':' .. kind
  end
  table.sort(names)
  note('names', table.concat(names, ' '), uv.fs_readlink(directory .. '/made/link') == file)
  -- A queue of reads, some of them cancelled: each is told once.
  local told, cancelled = 0, 0
  fd = assert(uv.fs_open(file, 'r', 420))
  for i = 1, 200 do
    local one = uv.fs_read(fd, 1000, 0, function(err, got)
      told = told + 1
      if err then cancelled = cancelled + (err:match('^ECANCELED') and 1 or 1000) else assert(#got == 1000) end
    end)
    if i % 5 == 0 then uv.cancel(one) end
  end
  wait(function() return told == 200 end, 'all reads are told')
  note('cancelled at most', cancelled <= 40)
  uv.fs_close(fd)
  -- Changes.
  local watcher, changes = uv.new_fs_event(), {}
  watcher:start(directory .. '/made', {}, function(err, name) changes[name] = true end)
  for i = 1, 10 do uv.fs_close(assert(uv.fs_open(directory .. '/made/new' .. i, 'w', 420))) end
  wait(function() return changes.new10 end, 'a change')
  watcher:close()
  for _, name in ipairs({ 'copy', 'link', 'hard', 'new1' }) do assert(uv.fs_unlink(directory .. '/made/' .. name)) end
  uv.fs_rename(directory .. '/made/new2', directory .. '/renamed')
  note('renamed', uv.fs_access(directory .. '/renamed', 'r'), uv.fs_access(directory .. '/made/new2', 'r'))
end

-- Polls on fds that the program reads and writes itself.
do
  local fds = uv.socketpair(nil, nil, { nonblock = true }, { nonblock = true })
  local left, right = uv.new_poll(fds[1]), uv.new_poll(fds[2])
  local turns, events = 0, {}
  right:start('r', function(err, what)
    assert(not err, err)
    local data = uv.fs_read(fds[2], 100, -1)
    turns = turns + 1
    if turns < 100 then left:start('w', function()
      left:stop()
      uv.fs_write(fds[1], 'turn ' .. turns, -1)
    end) end
    events[what] = true
    assert(data == 'turn ' .. turns - 1, data)
  end)
  uv.fs_write(fds[1], 'turn 0', -1)
  wait(function() return turns == 100 end, 'polls')
  note('polls', turns, events)
  left:close()
  right:close()
  uv.fs_close(fds[1])
  uv.fs_close(fds[2])
end

-- Programs, signals, threads, work, names, timers, idle handles.
do
  local ended, out = {}, {}
  for i = 1, 10 do
    local input, output = uv.new_pipe(false), uv.new_pipe(false)
    local process
    process = uv.spawn('/bin/sh', { args = { '-c', 'cat; exit ' .. i }, stdio = { input, output, 2 } }, function(code, signal)
      ended[#ended + 1] = i
      out[i] = (out[i] or '') .. ' ' .. code .. ' ' .. signal
      process:close()
    end)
    local got, size = 0, i * 30000
    output:read_start(function(_, data)
      if data then got = got + #data return end
      assert(got == size, got)
      ended[#ended + 1] = -i
      output:close()
    end)
    input:write(pattern(size, i))
    input:shutdown(function() input:close() end)
  end
  wait(function() return #ended == 20 end, 'programs')
  note('programs', out)
  local killed
  local sleeper
  sleeper = uv.spawn('/bin/sleep', { args = { '1000' } }, function(code, signal)
    killed = signal
    sleeper:close()
  end)
  sleeper:kill('sigterm')
  wait(function() return killed end, 'killed')
  note('killed', killed)
  local signal, times = uv.new_signal(), 0
  signal:start('sigusr2', function(name) times = times + 1 end)
  for turn = 1, 10 do
    uv.kill(uv.os_getpid(), 'sigusr2')
    wait(function() return times == turn end, 'a signal')
  end
  signal:close()
  local worked = {}
  for i = 1, 50 do
    local work = uv.new_work(function(a) return a * a end, function(b) worked[#worked + 1] = b end)
    work:queue(i)
  end
  wait(function() return #worked == 50 end, 'work')
  table.sort(worked)
  note('work', table.concat(worked, ','))
  local told = 0
  local async
  async = uv.new_async(function() told = told + 1 end)
  local thread = uv.new_thread(function(handle)
    for _ = 1, 1000 do handle:send() end
  end, async)
  thread:join()
  wait(function() return told >= 1 end, 'an async')
  async:close()
  local found
  uv.getaddrinfo('127.0.0.1', nil, { socktype = 'stream' }, function(err, list) found = err or list[1].addr end)
  wait(function() return found end, 'a name')
  note('name', found)
  local order, rounds = {}, 0
  for _, delay in ipairs({ 30, 10, 20, 0 }) do
    local timer = uv.new_timer()
    timer:start(delay, 0, function()
      order[#order + 1] = delay
      timer:close()
    end)
  end
  wait(function() return #order == 4 end, 'timers')
  note('timers', table.concat(order, ','))
  local idle, prepare, check = uv.new_idle(), uv.new_prepare(), uv.new_check()
  local turns = { idle = 0, prepare = 0, check = 0 }
  idle:start(function() turns.idle = turns.idle + 1 end)
  prepare:start(function() turns.prepare = turns.prepare + 1 end)
  check:start(function() turns.check = turns.check + 1 end)
  wait(function() return turns.idle > 20 and turns.prepare > 20 and turns.check > 20 end, 'turns')
  for _, handle in ipairs({ idle, prepare, check }) do handle:close() end
end

-- By hand: one turn at a time, with the backend's fd for another's poll. (In nvim the loop is not ours.)
if not vim then
  uv.run('nowait')
  note('alive', uv.loop_alive())
  local server, met = uv.new_tcp(), 0
  server:bind(address, 0)
  server:listen(5, function()
    local peer = uv.new_tcp()
    server:accept(peer)
    met = met + 1
    peer:close()
  end)
  assert(uv.backend_fd() >= 0)
  for turn = 1, 5 do
    local client = uv.new_tcp()
    client:connect(address, server:getsockname().port, function() client:close() end)
    while met < turn do
      uv.run('nowait')
    end
  end
  note('by hand', met)
  server:close()
  uv.run()
  note('alive', uv.loop_alive(), uv.loop_close())
end

finish()
