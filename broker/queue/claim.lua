-- Who gets which chunk: suspects, ageing, priorities, tenants by deficit round robin.

-- A chunk just popped from its list, or nil: gone, cancelled, paused, or finished by others meanwhile.
local function usable(cid, st)
  local c = chunk_get(cid)
  if not c or c.st ~= st then return nil end
  c.st = ''
  local job = job_get(c.j)
  if not job then retire(c) return nil end
  if job.st ~= 'RUN' then
    cancel_chunk(c, job)
    finish(job)
    return nil
  end
  c.m = without(c.m, done_mask(c.j, c.lo))
  if c.m == 0 then retire(c) return nil end
  if job.paused then place(c, job) return nil end
  return c, job
end

local function grant(c, job, wid, lease_ms)
  local tok = call('INCR', P .. 'tok')
  call('HSET', P .. 'ck:' .. c.cid, 'st', 'L', 'tok', tok, 'w', wid, 'm', c.m, 'sb', 0)
  call('ZADD', P .. 'lease', now() + lease_ms, c.cid)
  call('SADD', P .. 'own:' .. wid, c.cid)
  local texts = {}
  if job.kind == 'inline' then
    local idx = offsets(c.m)
    for i = 1, #idx do idx[i] = c.lo + idx[i] end
    texts = call('HMGET', P .. 'it:' .. c.j, unpack(idx))
  end
  return {tonumber(c.cid), tok, c.j, c.lo, c.n, c.m, c.solo and 1 or 0, c.cr, c.pos, job.kind, job.params, texts}
end

-- A suspect needs a worker with empty hands. No more workers than there are suspects are kept from new work until theirs are.
local function empties_for_suspects(class, wid, suspects)
  local key = P .. 'sw:' .. class
  call('ZREMRANGEBYSCORE', key, '-inf', now() - cfg('ageing_ms'))
  if not call('ZSCORE', key, wid) then
    if call('ZCARD', key) >= suspects then return false end
    call('ZADD', key, now(), wid)
  end
  return true
end

-- A suspect for this worker, or true when it must have nothing else now, or nil.
local function suspect(classes, wid, lease_ms)
  local held = call('SCARD', P .. 'own:' .. wid)
  if held == 1 and call('HGET', P .. 'ck:' .. call('SRANDMEMBER', P .. 'own:' .. wid), 'solo') == '1' then return true end
  for _, class in ipairs(classes) do
    local lane = P .. 'sus:' .. class
    local n = call('LLEN', lane)
    if n > 0 and held > 0 and empties_for_suspects(class, wid, n) then return true end
    for _ = 1, held == 0 and math.min(n, STEP) or 0 do
      local c, job = usable(call('LPOP', lane), 'S')
      if c then
        call('ZREM', P .. 'sw:' .. class, wid)
        return grant(c, job, wid, lease_ms)
      end
    end
  end
end

-- Takes at most `want` items off a chunk: the rest goes back to the front under its own id.
local function split(c, job, want)
  local list = offsets(c.m)
  if #list <= want then return c end
  local part = 0
  for i = 1, want do part = part + 2 ^ list[i] end
  local rest = without(c.m, part)
  c.m = rest
  place(c, job, true)
  local p = {cid = call('INCR', P .. 'cid'), st = '', j = c.j, lo = c.lo, n = c.n, m = part, sb = 0, solo = false, cr = 0, rp = c.rp, pos = c.pos, p = c.p, t = c.t,
             c = c.c, id = ''}
  call('HSET', P .. 'ck:' .. p.cid, 'j', p.j, 'lo', p.lo, 'n', p.n, 'solo', 0, 'cr', 0, 'rp', p.rp, 'pos', p.pos, 'p', p.p, 't', p.t, 'c', p.c, 'id', '', 'at', now())
  call('SADD', P .. 'jc:' .. p.j, p.cid)
  job_add(job, 'live', 1)
  return p
end

-- The next chunk of a level by deficit round robin, or nil. A tenant is served while its deficit is above 0 and gets its quantum when it goes to the back. The
-- deficit may fall below 0 by a chunk, which is paid back: chunks are never looked at and put back.
local function next_chunk(class, pri, b)
  local level = class .. ':' .. pri
  local ring, def = P .. 'ring:' .. level, P .. 'def:' .. level
  while b.pops > 0 do
    b.pops = b.pops - 1
    local tenant = call('LINDEX', ring, 0)
    if not tenant then return nil end
    local deficit = tonumber(call('HGET', def, tenant) or '0')
    if deficit <= 0 then
      local weight = math.max(0.1, tonumber(call('HGET', P .. 'cfg', 'weight:' .. tenant) or '1'))
      call('HSET', def, tenant, tostring(deficit + cfg('quantum') * weight))
      call('LMOVE', ring, ring, 'LEFT', 'RIGHT')
    else
      local list = P .. 'rdy:' .. level .. ':' .. tenant
      local c, job = usable(call('LPOP', list), 'R')
      if c and #offsets(c.m) > b.want then
        -- The tenant is still in the ring: split() must not add it again when the list was just emptied.
        call('RPUSH', list, '0')
        c = split(c, job, b.want)
        call('RPOP', list)
      end
      if call('LLEN', list) == 0 then
        call('LPOP', ring)
        call('HDEL', def, tenant)
      elseif c then
        call('HSET', def, tenant, tostring(deficit - #offsets(c.m)))
      end
      if c then return c, job end
    end
  end
end

local function serve(class, pri, b, chunks)
  local served = false
  while b.want > 0 and chunks > 0 do
    local c, job = next_chunk(class, pri, b)
    if not c then break end
    b.want, chunks, served = b.want - #offsets(c.m), chunks - 1, true
    b.out[#b.out + 1] = grant(c, job, b.wid, b.lease_ms)
  end
  if served then call('HSET', P .. 'srv', class .. ':' .. pri, now()) end
end

-- For each priority the classes in the order in which they were last served, so that neither of the two starves the other.
local function levels(classes)
  local list = {}
  for pri = 0, 2 do
    local these = {}
    for _, class in ipairs(classes) do
      if call('LLEN', P .. 'ring:' .. class .. ':' .. pri) > 0 then
        these[#these + 1] = {class = class, pri = pri, srv = tonumber(call('HGET', P .. 'srv', class .. ':' .. pri) or '0')}
      end
    end
    table.sort(these, function(x, y) return x.srv < y.srv end)
    for _, level in ipairs(these) do list[#list + 1] = level end
  end
  return list
end

-- True for a broker's session of a worker that has said hello to another broker since, as a new incarnation.
local function fenced(wid)
  local name, inc = string.match(wid, '^(.*)#(%d+)$')
  local last = name and call('HGET', P .. 'inc', name)
  return last and last ~= inc
end

register('btc_claim', nil, function(a)
  local wid, lease_ms, want, class = a[1], tonumber(a[2]), tonumber(a[3]), a[4]
  if not class or not lease_ms or not want or wid == '' then return bad('arguments') end
  if want < 1 or call('EXISTS', P .. 'paused', P .. 'hold') > 0 or fenced(wid) then return {} end
  -- Records that nobody takes away: no more of them is lossless, trimming them would not be.
  if call('XLEN', P .. 'out') >= cfg('max_out') or call('XLEN', P .. 'res') >= cfg('max_out') then return {} end
  local classes = class == '' and {''} or {class, ''}
  local s = suspect(classes, wid, lease_ms)
  if s then return s == true and {} or {s} end
  local b = {wid = wid, lease_ms = lease_ms, want = math.min(math.floor(want), 1024), pops = STEP, out = {}}
  local list = levels(classes)
  for i = 2, #list do -- the first is served anyway
    if list[i].srv <= now() - cfg('ageing_ms') then serve(list[i].class, list[i].pri, b, 1) end
  end
  for _, level in ipairs(list) do serve(level.class, level.pri, b, 64 - #b.out) end
  return b.out
end)

