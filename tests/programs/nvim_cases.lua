-- SPDX-License-Identifier: MIT
-- What the terminal test does inside nvim: jobs, pipes, timers, TCP, files, all on
-- its libuv loop. The results go to the file that $RESULTS names.
local uv = vim.loop
local seen = {}
local function note(...) table.insert(seen, table.concat(vim.tbl_map(tostring, { ... }), ' ')) end

note('system', vim.fn.system('printf hello'), vim.v.shell_error)
note('system input', #vim.fn.system('cat', string.rep('x', 300000)))

local exits = {}
local jobs = {}
for i = 1, 20 do
  local out = ''
  jobs[i] = vim.fn.jobstart({ 'sh', '-c', 'cat; echo end ' .. i .. '; exit ' .. i }, {
    stdout_buffered = true,
    on_stdout = function(_, data) out = out .. table.concat(data, '|') end,
    on_exit = function(_, status) exits[i] = status .. ':' .. out end,
  })
  vim.fn.chansend(jobs[i], 'input ' .. i .. '\n')
  vim.fn.chanclose(jobs[i], 'stdin')
end
vim.fn.jobwait(jobs, 20000)
assert(vim.wait(20000, function() return #vim.tbl_keys(exits) == 20 end, 5))
for i = 1, 20 do note('job', i, exits[i]) end

local order = {}
for _, delay in ipairs({ 30, 10, 20 }) do
  vim.defer_fn(function() table.insert(order, delay) end, delay)
end
assert(vim.wait(20000, function() return #order == 3 end, 5))
note('timers', unpack(order))

-- A TCP echo server and ten clients.
local server = uv.new_tcp()
server:bind(os.getenv('ADDRESS'), 0)
server:listen(128, function()
  local peer = uv.new_tcp()
  server:accept(peer)
  peer:read_start(function(_, data)
    if data then peer:write(data) else peer:shutdown(function() peer:close() end) end
  end)
end)
local ended = 0
for i = 1, 10 do
  local client, got = uv.new_tcp(), 0
  client:connect(os.getenv('ADDRESS'), server:getsockname().port, function()
    client:read_start(function(_, data)
      if data then
        got = got + #data
      else
        assert(got == i * 50000, got)
        ended = ended + 1
        client:close()
      end
    end)
    client:write(string.rep('e', i * 50000))
    client:shutdown()
  end)
end
assert(vim.wait(20000, function() return ended == 10 end, 5))
note('echoed', ended)

-- Channels to another nvim: its standard streams, a socket with a path, TCP; raw bytes to the echo.
do
  local path = os.getenv('RESULTS') .. '.sock'
  local job = vim.fn.jobstart({ vim.v.progpath, '-u', 'NONE', '-i', 'NONE', '-n', '--embed', '--headless', '--listen', path },
    { rpc = true })
  local port = vim.rpcrequest(job, 'nvim_call_function', 'serverstart', { os.getenv('ADDRESS') .. ':0' })
  local channels = { job, vim.fn.sockconnect('pipe', path, { rpc = true }), vim.fn.sockconnect('tcp', port, { rpc = true }) }
  for i, channel in ipairs(channels) do
    local total = 0
    for turn = 1, 200 do total = total + vim.rpcrequest(channel, 'nvim_eval', turn .. ' * 2') end
    for turn = 1, 100 do vim.rpcnotify(channel, 'nvim_set_var', 'told', turn) end
    note('channel', i, total, vim.rpcrequest(channel, 'nvim_get_var', 'told'))
    vim.rpcnotify(channel, 'nvim_set_var', 'large', string.rep('r', 700000))
    note('large', #vim.rpcrequest(channel, 'nvim_get_var', 'large'))
  end
  vim.fn.chanclose(channels[3])
  vim.rpcnotify(job, 'nvim_command', 'qall!')
  note('ended', vim.fn.jobwait({ job }, 20000)[1])
end
do
  local back = ''
  local channel = vim.fn.sockconnect('tcp', os.getenv('ADDRESS') .. ':' .. server:getsockname().port, {
    on_data = function(_, data) back = back .. table.concat(data, '\n') end,
  })
  local sent = ''
  for i = 1, 200 do
    vim.fn.chansend(channel, 'line ' .. i .. '\n')
    sent = sent .. 'line ' .. i .. '\n'
  end
  assert(vim.wait(20000, function() return back == sent end, 1), 'the echo of a channel')
  vim.fn.chanclose(channel)
  note('channel', #back)
end
server:close()

-- Files through the thread pool.
local file = os.getenv('RESULTS') .. '.data'
local size
uv.fs_open(file, 'w', 420, function(_, fd)
  uv.fs_write(fd, string.rep('f', 100000), 0, function()
    uv.fs_close(fd, function() uv.fs_stat(file, function(_, stat) size = stat.size end) end)
  end)
end)
assert(vim.wait(20000, function() return size end, 5))
note('file', size)

local out = assert(io.open(os.getenv('RESULTS'), 'w'))
out:write(table.concat(seen, '\n'), '\n')
out:close()
vim.cmd('qall!')
