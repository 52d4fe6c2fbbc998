-- What brokers do for all: reap, promote, cancel, pause, resume, replay.

local function step(text) return math.max(1, math.min(tonumber(text) or STEP, STEP)) end

register('btc_reap', {'allow-oom'}, function(a)
  local list = call('ZRANGEBYSCORE', P .. 'lease', '-inf', now(), 'LIMIT', 0, step(a[1]))
  for _, cid in ipairs(list) do
    local c = chunk_get(cid)
    if c and c.st == 'L' then reap_chunk(c) else call('ZREM', P .. 'lease', cid) end
  end
  return #list
end)

local function reap_owner(wid)
  local list = call('SRANDMEMBER', P .. 'own:' .. wid, STEP)
  for _, cid in ipairs(list) do
    local c = chunk_get(cid)
    if c and c.st == 'L' and c.w == wid then reap_chunk(c) else call('SREM', P .. 'own:' .. wid, cid) end
  end
  if #list > 0 then event('worker-lost', '', wid) end
  return #list
end

-- The broker declares a worker dead: its name is free at once, and its chunks are.
register('btc_reap_owner', {'allow-oom'}, function(a)
  local name, inc = string.match(a[1], '^(.*)#(%d+)$')
  if name and call('HGET', P .. 'wk:' .. name, 'inc') == inc then call('DEL', P .. 'wk:' .. name) end
  return reap_owner(a[1])
end)

-- Accounts for chunks that nobody holds; true when none is left. `leased`: gets the others.
local function sweep_cancelled(job, leased)
  local list = call('SRANDMEMBER', P .. 'jc:' .. job.jid, STEP)
  for _, cid in ipairs(list) do
    local c = chunk_get(cid)
    if c and c.st == 'L' then
      leased[#leased + 1] = {tonumber(cid), tonumber(c.tok), c.w}
    elseif c then
      cancel_chunk(c, job)
    end
  end
  finish(job)
  return #list < STEP
end

local function sweep_held(job)
  local list = call('LPOP', P .. 'hd:' .. job.jid, STEP) or {}
  for _, cid in ipairs(list) do
    local c = chunk_get(cid)
    if c and c.st == 'H' then place(c, job) end
  end
  return #list < STEP
end

-- Goes on with what a cancel or a resume left, or an ended job's chunks. True when there is nothing left.
local function sweep(jid)
  local job = job_get(jid)
  if not job then return true end
  if job.st == 'RUN' then return job.paused or sweep_held(job) end
  if job.st == 'CXL' then return sweep_cancelled(job, {}) end
  return sweep_ended(jid)
end

-- Each broker says at each connection the highest commit number it has seen. When ours is lower, history was lost: the numbers go on where they were, all brokers
-- learn it by `lost` (another text at each loss: brokers that connect later find the numbers right), and nothing is handed out for a moment, so that all of them
-- can repeat what they know before others do that work again.
local HOLD_MS = 3000

register('btc_recover', {'allow-oom'}, function(a)
  local mine, here, jid, idx = tonumber(a[1]), tonumber(call('GET', P .. 'seq') or '0'), a[2], tonumber(a[3])
  if not mine or not idx then return bad('arguments') end
  -- Others may have committed since, so that the number is higher than ever: then the newest item this broker knows to be done tells.
  local gone = jid ~= '' and call('EXISTS', P .. 'job:' .. jid) == 1 and call('GETBIT', P .. 'dn:' .. jid, idx) == 0
  if mine > here or gone then
    local since = call('EXISTS', P .. 'hold') == 1 and string.match(call('GET', P .. 'lost') or '', ':(%d+)$')
    now()
    call('SET', P .. 'lost', string.format('%.0f%03d:%.0f', clock, usec % 1000, math.min(here, tonumber(since or nil) or here)))
    call('SET', P .. 'seq', string.format('%.0f', math.max(mine, here)))
    call('SET', P .. 'hold', '1', 'PX', HOLD_MS)
    event('history-lost', '', '')
  end
  return call('GET', P .. 'lost') or ''
end)

register('btc_promote', {'allow-oom'}, function(a)
  local list = call('ZRANGEBYSCORE', P .. 'dly', '-inf', now(), 'LIMIT', 0, step(a[1]))
  for _, cid in ipairs(list) do
    call('ZREM', P .. 'dly', cid)
    local c = chunk_get(cid)
    local job = c and c.st == 'D' and job_get(c.j)
    if job and job.st == 'RUN' then place(c, job) end
  end
  local jid = call('SRANDMEMBER', P .. 'sweep')
  if jid and sweep(jid) then call('SREM', P .. 'sweep', jid) end
  return #list
end)

register('btc_cancel', {'allow-oom'}, function(a)
  local job = job_get(a[1])
  if not job then return {'', {}} end
  if job.st == 'RUN' then
    job.st = 'CXL'
    job_set(job, 'st', 'CXL', 'cur', job.total)
    local left = job.total - job.cur
    if left > 0 then left = left - call('BITCOUNT', P .. 'dn:' .. job.jid, job.cur, job.total - 1, 'BIT') end
    job_add(job, 'canc', left)
    stat('cancelled', left)
    job.cur = job.total
  end
  local leased = {}
  if job.st == 'CXL' and not sweep_cancelled(job, leased) and job.st == 'CXL' then call('SADD', P .. 'sweep', job.jid) end
  return {job.st, leased}
end)

register('btc_pause', {'allow-oom'}, function(a)
  if a[1] == '' then
    call('SET', P .. 'paused', a[2] or '')
    return 'PAUSED'
  end
  local job = job_get(a[1])
  if not job then return '' end
  if job.st ~= 'RUN' then return job.st end
  if not job.paused then job_pause(job, a[2] or '') end -- ready chunks are held when claim meets them
  return 'PAUSED'
end)

register('btc_resume', {'allow-oom'}, function(a)
  if a[1] == '' then
    call('DEL', P .. 'paused')
    return 'RUN'
  end
  local job = job_get(a[1])
  if not job then return '' end
  if job.st ~= 'RUN' then return job.st end
  if job.paused then
    job.paused = false
    job_set(job, 'paused', '0', 'msg', '')
  end
  if not sweep_held(job) then call('SADD', P .. 'sweep', job.jid) end
  return 'RUN'
end)

-- Dead letters that died of themselves come back in chunks as they were; those that took an engine with them alone.
local ALONE = {crash = true, oom = true, timeout = true}

register('btc_replay', nil, function(a)
  local jid, reason, cursor = a[1], a[2], a[3]
  if not cursor or not string.match(cursor, '^%d+$') then return bad('cursor') end
  local job = job_get(jid)
  if not job or (job.st ~= 'RUN' and job.st ~= 'FIN') then return {0, '0'} end
  local dd = P .. 'dd:' .. jid
  local found = call('HSCAN', dd, cursor, 'COUNT', step(a[4]))
  local n, chunks = 0, {}
  for i = 1, #found[2], 2 do
    local idx, d = found[2][i], cjson.decode(found[2][i + 1])
    if (reason == '' or reason == d.reason) and call('HDEL', dd, idx) == 1 then
      call('HDEL', P .. 'er:' .. jid, idx)
      local alone = ALONE[d.reason]
      local key = d.lo .. (alone and ':' .. idx or '')
      local from = chunks[key] or {lo = d.lo, n = d.n, pos = d.pos, m = 0, solo = alone or false, id = alone and d.id or ''}
      from.m = from.m + 2 ^ (tonumber(idx) - d.lo)
      chunks[key], n = from, n + 1
    end
  end
  if n > 0 then
    job_add(job, 'dead', -n)
    if job.st == 'FIN' then
      job.st = 'RUN'
      job.epoch = call('HINCRBY', P .. 'job:' .. jid, 'epoch', 1)
      job_set(job, 'st', 'RUN', 'finished', 0)
      call('ZREM', P .. 'exp', jid)
      stat('live_jobs', 1)
      stat('live_items', job.total)
    end
    for _, from in pairs(chunks) do new_chunk(job, from, from.m, from.solo) end
  end
  return {n, found[1]}
end)

