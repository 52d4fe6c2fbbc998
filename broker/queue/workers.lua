-- Workers, duties, sealed files, retention, totals.

-- Incarnations are decimal digits of up to 64 bits, more than a Lua number holds.
local function newer(x, y) return #x > #y or (#x == #y and x > y) end

register('btc_hello', {'allow-oom'}, function(a)
  local name, inc, ttl, broker, info = a[1], a[2], tonumber(a[3]), a[4], a[5]
  if not info or not ttl or not string.match(inc, '^[1-9]%d*$') or not string.match(name, '^[%w._-]+$') then return bad('worker') end
  local wk = P .. 'wk:' .. name
  local v = call('HMGET', wk, 'inc', 'broker')
  if v[1] and v[1] ~= inc then return {'TAKEN', v[2] or '', v[1]} end
  local last = call('HGET', P .. 'inc', name)
  if last and newer(last, inc) then return {'TAKEN', '', last} end -- the ghost of an older one
  if last and last ~= inc then reap_owner(name .. '#' .. last) end
  call('HSET', P .. 'inc', name, inc)
  call('HSET', wk, 'inc', inc, 'broker', broker, 'info', info, 'seen', now())
  call('PEXPIRE', wk, ttl)
  call('SADD', P .. 'workers', name)
  return {'OK'}
end)

register('btc_bye', {'allow-oom'}, function(a)
  local name, inc = a[1], a[2]
  local wid = name .. '#' .. inc
  for _, cid in ipairs(call('SRANDMEMBER', P .. 'own:' .. wid, STEP)) do
    local c = chunk_get(cid)
    if c and c.st == 'L' and c.w == wid then release(c) end
  end
  if call('HGET', P .. 'wk:' .. name, 'inc') == inc then
    call('DEL', P .. 'wk:' .. name)
    call('SREM', P .. 'workers', name)
  end
  -- While it still owns something, `inc` stays: the next hello or tidy needs to know what this one had.
  if call('HGET', P .. 'inc', name) == inc and call('SCARD', P .. 'own:' .. wid) == 0 then call('HDEL', P .. 'inc', name) end
  return 'OK'
end)

register('btc_lead', {'allow-oom'}, function(a)
  local key = P .. 'ldr:' .. a[1]
  local who = call('GET', key)
  if who and who ~= a[2] then return 0 end
  call('SET', key, a[2], 'PX', a[3])
  return 1
end)

register('btc_sealed', {'allow-oom'}, function(a)
  local jid, n, gone = a[1], tonumber(a[2]), 0
  if not n or #a > 2 + 4 * STEP then return bad('arguments') end
  for i = 3, #a do
    call('XACK', P .. 'res', 'sink', a[i])
    gone = gone + call('XDEL', P .. 'res', a[i])
  end
  -- Each entry counts for whom it is deleted: of two sinks that sealed the same ones each may find some of them.
  n = math.min(n, gone)
  if n > 0 and job_get(jid) then call('HINCRBY', P .. 'job:' .. jid, 'rec', n) end
  return gone
end)

-- The first entry of `out` that some group still needs, or nil when there is no group: records wait for the first one.
local function first_needed(stream)
  local oldest, groups = nil, call('EXISTS', stream) == 1 and call('XINFO', 'GROUPS', stream) or {}
  local function older(x, y) return x[1] < y[1] or (x[1] == y[1] and x[2] < y[2]) end
  for _, flat in ipairs(groups) do
    local g = {}
    for i = 1, #flat, 2 do g[flat[i]] = flat[i + 1] end
    local pending = g['pending'] > 0 and call('XPENDING', stream, g['name'])[2]
    local ms, seq = string.match(pending or g['last-delivered-id'], '(%d+)-(%d+)')
    local id = {tonumber(ms), tonumber(seq) + (pending and 0 or 1)}
    if not oldest or older(id, oldest) then oldest = id end
  end
  return oldest and string.format('%.0f-%.0f', oldest[1], oldest[2])
end

local function trim_out(max)
  local stream = P .. 'out'
  local id = first_needed(stream)
  if not id then return 0 end
  local n = 0
  for _, entry in ipairs(call('XRANGE', stream, '-', '(' .. id, 'COUNT', max)) do n = n + call('XDEL', stream, entry[1]) end
  return n
end

local function forget(jid)
  call('UNLINK', P .. 'job:' .. jid, P .. 'it:' .. jid, P .. 'dn:' .. jid, P .. 'dd:' .. jid, P .. 'er:' .. jid, P .. 'hd:' .. jid, P .. 'jc:' .. jid)
  call('ZREM', P .. 'jobs', jid)
  call('ZREM', P .. 'exp', jid)
  call('SREM', P .. 'sweep', jid)
end

-- Only when nothing of it is under way: no chunk, and no record that the sink has still to write.
local function forgettable(jid)
  local v = call('HMGET', P .. 'job:' .. jid, 'st', 'route', 'done', 'rec')
  if not v[1] then return true end
  if (v[1] ~= 'FIN' and v[1] ~= 'CXD') or call('SCARD', P .. 'jc:' .. jid) > 0 then return false end
  return v[2] == 'stream' or tonumber(v[4]) >= tonumber(v[3])
end

register('btc_forget', {'allow-oom'}, function(a)
  if not forgettable(a[1]) then return 0 end
  forget(a[1])
  return 1
end)

-- A class in which nothing waits: classes come from submissions, so that there may be any number of them. What waits elsewhere (delayed, held,
-- with a worker) names its class again when it gets ready.
local function forget_class(class)
  if call('EXISTS', P .. 'sus:' .. class, P .. 'sw:' .. class) > 0 then return end
  for pri = 0, 2 do
    if call('EXISTS', P .. 'ring:' .. class .. ':' .. pri) > 0 then return end
  end
  for pri = 0, 2 do
    call('HDEL', P .. 'srv', class .. ':' .. pri)
    call('UNLINK', P .. 'def:' .. class .. ':' .. pri)
  end
  call('SREM', P .. 'classes', 'c:' .. class)
end

register('btc_tidy', {'allow-oom'}, function(a)
  local max = step(a[1])
  local n = trim_out(4 * max)
  for _, jid in ipairs(call('ZRANGEBYSCORE', P .. 'exp', '-inf', now(), 'LIMIT', 0, max)) do
    if forgettable(jid) then
      forget(jid)
      n = n + 1
    else
      call('ZADD', P .. 'exp', now() + 60000, jid)
    end
  end
  for _, entry in ipairs(call('SRANDMEMBER', P .. 'classes', max)) do forget_class(string.sub(entry, 3)) end
  for _, name in ipairs(call('SRANDMEMBER', P .. 'workers', max)) do
    local inc = call('HGET', P .. 'inc', name)
    if call('EXISTS', P .. 'wk:' .. name) == 0 and (not inc or call('SCARD', P .. 'own:' .. name .. '#' .. inc) == 0) then
      call('SREM', P .. 'workers', name)
      call('HDEL', P .. 'inc', name)
      n = n + 1
    end
  end
  return n
end)

-- Chunks ready in all levels, and how long the one at the front of the oldest list has waited.
local function ready_totals(class)
  local n, oldest = 0, 0
  for pri = 0, 2 do
    local level = class .. ':' .. pri
    for _, tenant in ipairs(call('LRANGE', P .. 'ring:' .. level, 0, STEP - 1)) do
      local list = P .. 'rdy:' .. level .. ':' .. tenant
      n = n + call('LLEN', list)
      local at = tonumber(call('HGET', P .. 'ck:' .. call('LINDEX', list, 0), 'at') or nil)
      if at then oldest = math.max(oldest, now() - at) end
    end
  end
  return n, oldest
end

register('btc_totals', {'no-writes'}, function()
  local ready, suspects, oldest = 0, 0, 0
  for _, entry in ipairs(call('SMEMBERS', P .. 'classes')) do
    local class = string.sub(entry, 3)
    local n, age = ready_totals(class)
    ready, oldest = ready + n, math.max(oldest, age)
    suspects = suspects + call('LLEN', P .. 'sus:' .. class)
  end
  return {ready, call('ZCARD', P .. 'lease'), call('ZCARD', P .. 'dly'), suspects, call('EXISTS', P .. 'paused'),
          tonumber(call('HGET', P .. 'stat', 'live_jobs') or '0'), call('XLEN', P .. 'out'), call('XLEN', P .. 'res'), oldest,
          tonumber(call('GET', P .. 'seq') or '0')}
end)
