-- What the holder of a lease says: started, results, failures, release, extension.

register('btc_start', {'allow-oom'}, function(a)
  local lost = {}
  for i = 2, #a - 2, 3 do
    local c = owned(a[i], a[i + 1])
    if c then
      local mask = tonumber(a[i + 2]) % WORD
      call('HSET', P .. 'ck:' .. c.cid, 'sb', bit.bor(c.sb, band(c.m, mask)) % WORD)
    else
      lost[#lost + 1] = tonumber(a[i])
    end
  end
  return lost
end)

-- One item of a commit: 'fresh', 'done' (before), 'canc' or nil (refused).
local function commit_item(job, own, idx, id, record)
  if job.st == 'RUN' then
    if call('HEXISTS', P .. 'dd:' .. job.jid, idx) == 1 then return nil end
    if call('SETBIT', P .. 'dn:' .. job.jid, idx, 1) == 1 then return 'done' end
    emit(job, idx, id, record)
    return 'fresh'
  end
  if call('GETBIT', P .. 'dn:' .. job.jid, idx) == 1 then return 'done' end
  return own and job.st == 'CXL' and 'canc' or nil
end

-- Beyond the job's cursor too: after Redis lost history, results come of chunks that it has not made again yet.
local function offset_of(text, job, lo)
  local off = tonumber(text)
  return off and off >= 0 and off < 32 and off % 1 == 0 and lo + off < job.total and off or nil
end

register('btc_commit', {'allow-oom'}, function(a)
  local cid, jid, lo, lease_ms = a[1], a[3], tonumber(a[4]), tonumber(a[5])
  if #a < 6 or (#a - 6) % 3 ~= 0 or not lo or not lease_ms then return bad('arguments') end
  local c, job = chunk_get(cid), job_get(jid)
  if c and (c.j ~= jid or c.lo ~= lo) then return bad('the chunk is of another job or place') end
  local seq = call('INCR', P .. 'seq')
  if not job then return {0, 0, seq, (#a - 6) / 3} end -- so many are not known: the job may come, a broker's journal tries again
  local own = c and c.st == 'L' and c.tok == a[2]
  local fresh, canc, dup = 0, 0, 0
  for i = 7, #a, 3 do
    local off = offset_of(a[i], job, lo)
    local mine = off and c and has(c.m, off)
    local what = off and commit_item(job, own and mine, lo + off, a[i + 1], a[i + 2])
    if what == 'fresh' then fresh = fresh + 1 elseif what == 'canc' then canc = canc + 1 else dup = dup + 1 end
    if what and mine then c.m = c.m - 2 ^ off end -- also a late result's, when its chunk still has the item
  end
  if c then keep_or_retire(c) end
  if own and c.m > 0 then renew(c, lease_ms) end
  job_add(job, 'done', fresh)
  job_add(job, 'canc', canc)
  stat('committed', fresh)
  stat('cancelled', canc)
  stat('dup', dup)
  if not own then stat('late', fresh) end
  if fresh + canc > 0 then finish(job) end
  return {own and 1 or 0, fresh, seq}
end)

local HANG = {h = true}
local REASONS = {c = 'crash', h = 'timeout', o = 'oom', p = 'internal', t = 'internal'}

-- One failed item: 'dead', 'again' or nil (nothing to do any more). It leaves this chunk in any case.
local function fail_item(c, job, off, kind, d)
  local idx = c.lo + off
  if call('GETBIT', P .. 'dn:' .. job.jid, idx) == 1 then return nil end
  if job.st == 'CXL' then
    job_add(job, 'canc', 1)
    stat('cancelled', 1)
    return nil
  end
  if d.reason == '' then d.reason = REASONS[kind] end
  if kind == 'p' then
    d.attempts = 1 + tonumber(call('HGET', P .. 'er:' .. job.jid, idx) or '0')
    bury(c, job, off, d)
    return 'dead'
  end
  if kind ~= 't' then return crashed(c, job, off, d, cfg(HANG[kind] and 'max_hang' or 'max_crash')) and 'dead' or 'again' end
  d.attempts = call('HINCRBY', P .. 'er:' .. job.jid, idx, 1)
  if d.attempts >= cfg('max_err') then
    bury(c, job, off, d)
    return 'dead'
  end
  job_add(job, 'retries', 1)
  stat('retried', 1)
  local delay = math.min(cfg('retry_cap_ms'), cfg('retry_base_ms') * 2 ^ d.attempts) * random(c.cid .. ':' .. off)
  new_chunk(job, {lo = c.lo, n = c.n, pos = c.pos, cr = c.cr, id = d.id}, 2 ^ off, c.solo, now() + math.floor(delay))
  return 'again'
end

register('btc_fail', {'allow-oom'}, function(a)
  local jid, lo, lease_ms, wid = a[3], tonumber(a[4]), tonumber(a[5]), a[6]
  if not wid or (#a - 6) % 6 ~= 0 or not lo or not lease_ms then return bad('arguments') end
  for i = 8, #a, 6 do
    if not REASONS[a[i]] then return bad('kind of failure') end
  end
  local c = owned(a[1], a[2])
  if not c then return {0, 0, 0} end
  if c.j ~= jid or c.lo ~= lo then return bad('the chunk is of another job or place') end
  local job = job_get(jid)
  if not job then retire(c) return {0, 0, 0} end
  local dead, again = 0, 0
  for i = 7, #a, 6 do
    local off = offset_of(a[i], job, lo)
    if off and has(c.m, off) then
      local what = fail_item(c, job, off, a[i + 1], {id = a[i + 2], reason = a[i + 3], message = a[i + 4], record = a[i + 5], worker = wid})
      if what == 'dead' then dead = dead + 1 elseif what then again = again + 1 end
      c.m = c.m - 2 ^ off
    end
  end
  keep_or_retire(c)
  if c.m > 0 then renew(c, lease_ms) end
  finish(job)
  return {1, dead, again}
end)

local function release(c)
  unlease(c)
  local job = job_get(c.j)
  if job and job.st == 'RUN' then
    place(c, job, true)
  elseif job then
    cancel_chunk(c, job)
    finish(job)
  else
    retire(c)
  end
  stat('released', 1)
end

register('btc_release', {'allow-oom'}, function(a)
  local n = 0
  for i = #a - 1, 2, -2 do -- backwards: each goes to the front
    local c = owned(a[i], a[i + 1])
    if c then
      release(c)
      n = n + 1
    end
  end
  return n
end)

register('btc_extend', {'allow-oom'}, function(a)
  local lost = {}
  for i = 3, #a - 1, 2 do
    local c = owned(a[i], a[i + 1])
    local job = c and job_get(c.j)
    -- A cancelled job's lease runs out: its items are accounted for then, whatever the worker does.
    if job and job.st == 'RUN' then renew(c, tonumber(a[2])) else lost[#lost + 1] = tonumber(a[i]) end
  end
  return lost
end)

