#!lua name=btc
--[[
The queue: every change of state, each in one call (docs/protocol.md 2-4 is the contract). The files of this folder are one library, in the order of
cmake/lua.cmake; this one has what all lean on.

Redis runs a function to its end before anything else, and its AOF keeps or loses a call as a whole. So a crash anywhere sees an item either before or after a
call, and what must agree (done bit, record, counters, event) is written in one.

Invariants (tests/support/checker.c and tests/model check them):
  * an expanded item that is not done, dead or cancelled has its bit in the mask of exactly one chunk; a done item may still have one, which is taken out when met
  * a chunk stands in exactly one place: R in its tenant's list, S in a suspects' list, D in dly, H in its job's hd list, L in lease and own
  * lists may hold ids of chunks that are gone (removing from the middle of a list costs its length); an id stands in at most one list, once
  * a tenant is in its level's ring exactly while its list is not empty
  * items beyond an open job's cursor are in no chunk; those of them that are done are so by results which Redis had lost (btc_recover)

Every function does a bounded amount of work (STEP chunks or so); what is left of a cancel or a resume is in `sweep` and goes on in btc_promote.
--]]

local VERSION = 3 -- of these functions: a broker replaces an older library
local SCHEMA = 1  -- of the data: refused when newer than what we know
local STEP = 256
local WORD = 4294967296

-- Limits by their names in cfg; a broker sets some of them with btc_setup.
local DEFAULTS = {
  max_jobs = 100000, max_items = 1000000000, max_out = 1000000, max_dead = 100000,
  max_err = 3, max_crash = 3, max_hang = 1, max_reaped = 3, retry_base_ms = 1000, retry_cap_ms = 120000,
  quantum = 32, ageing_ms = 60000, busy_ms = 1000, key_ttl_ms = 86400000,
  ttl_ms = 2592000000, stream_ttl_ms = 3600000, ev_max = 10000,
}

-- State of the running call. Redis runs one call at a time, and `register` resets these.
local P, call            -- prefix of the keys; redis.call
local clock, usec        -- milliseconds and the microseconds in them
local jobs_seen, cfg_seen

local function register(name, flags, body)
  redis.register_function{function_name = name, flags = flags, callback = function(keys, args)
    if #keys ~= 1 then return redis.error_reply('BAD give one key: the prefix of the queue') end
    P, call, clock, jobs_seen, cfg_seen = keys[1], redis.call, nil, {}, {}
    return body(args)
  end}
end

local function bad(what) return redis.error_reply('BAD ' .. what) end

local function now()
  if not clock then
    local t = call('TIME')
    usec = tonumber(t[2])
    clock = tonumber(t[1]) * 1000 + math.floor(usec / 1000)
  end
  return clock
end

local function cfg(name)
  local v = cfg_seen[name]
  if v == nil then
    v = tonumber(call('HGET', P .. 'cfg', name) or nil) or DEFAULTS[name]
    cfg_seen[name] = v
  end
  return v
end

local function stat(name, n)
  if n ~= 0 then call('HINCRBY', P .. 'stat', name, n) end
end

-- From 0 to 1. Redis seeds math.random alike for every call, which is no jitter at all.
local function random(salt)
  now()
  return tonumber(string.sub(redis.sha1hex(salt .. ':' .. clock .. ':' .. usec), 1, 8), 16) / WORD
end

-- JSON text of a string; "/" stays as it is, like in the records that workers write.
local function quote(s) return (string.gsub(cjson.encode(s), '\\/', '/')) end

----------------------------------------------------------------------------------------------- masks
-- A mask is a number from 0 to 2^32-1, stored as decimal digits (strtoull reads it). Redis's bit library answers signed 32 bits: always through band().

local function band(a, b) return bit.band(a, b) % WORD end
local function without(m, x) return m - band(m, x) end
local function has(m, off) return math.floor(m / 2 ^ off) % 2 == 1 end

local function offsets(m)
  local list, off = {}, 0
  while m > 0 do
    if m % 2 == 1 then list[#list + 1] = off end
    m, off = math.floor(m / 2), off + 1
  end
  return list
end

-- Which of the 32 items from lo on are done. The bitmap's first bit is the highest of its word, a mask's the lowest.
local function done_mask(jid, lo)
  local word = call('BITFIELD_RO', P .. 'dn:' .. jid, 'GET', 'u32', lo)[1]
  if word == 0 then return 0 end
  local m = 0
  for off = 0, 31 do
    if math.floor(word / 2 ^ (31 - off)) % 2 == 1 then m = m + 2 ^ off end
  end
  return m
end

----------------------------------------------------------------------------------------------- jobs

local function job_get(jid)
  local job = jobs_seen[jid]
  if job == nil then
    local v = call('HMGET', P .. 'job:' .. jid, 'st', 'tenant', 'pri', 'class', 'route', 'kind', 'paused', 'epoch', 'total', 'cur', 'params', 'due')
    job = v[1] and {jid = jid, st = v[1], tenant = v[2], pri = v[3], class = v[4], route = v[5], kind = v[6], paused = v[7] == '1', epoch = v[8],
                    total = tonumber(v[9]), cur = tonumber(v[10]), params = v[11], due = tonumber(v[12])} or false
    jobs_seen[jid] = job
  end
  return job or nil
end

local function job_set(job, ...) call('HSET', P .. 'job:' .. job.jid, ...) end
local function job_add(job, field, n) if n ~= 0 then call('HINCRBY', P .. 'job:' .. job.jid, field, n) end end

local function event(kind, jid, msg)
  local v = jid ~= '' and call('HMGET', P .. 'job:' .. jid, 'epoch', 'done', 'dead', 'canc') or {}
  call('XADD', P .. 'ev', 'MAXLEN', '~', cfg('ev_max'), '*', 'type', kind, 'jid', jid, 'epoch', v[1] or '', 'done', v[2] or '', 'dead', v[3] or '',
       'canc', v[4] or '', 'msg', msg)
end

-- One record for those who wait for it: integrators (out) or the sink (res).
local function emit(job, idx, id, json)
  call('XADD', P .. (job.route == 'stream' and 'out' or 'res'), '*', 'jid', job.jid, 'idx', idx, 'id', id, 'epoch', job.epoch, 'json', json)
end

local function job_pause(job, why)
  job.paused = true
  job_set(job, 'paused', '1', 'msg', why)
  event('paused', job.jid, why)
end

----------------------------------------------------------------------------------------------- chunks

local function chunk_get(cid)
  local v = call('HMGET', P .. 'ck:' .. cid, 'st', 'tok', 'w', 'j', 'lo', 'n', 'm', 'sb', 'solo', 'cr', 'rp', 'pos', 'p', 't', 'c', 'id')
  if not v[1] then return nil end
  return {cid = cid, st = v[1], tok = v[2], w = v[3], j = v[4], lo = tonumber(v[5]), n = tonumber(v[6]), m = tonumber(v[7]), sb = tonumber(v[8]),
          solo = v[9] == '1', cr = tonumber(v[10]), rp = tonumber(v[11]), pos = v[12], p = v[13], t = v[14], c = v[15], id = v[16]}
end

-- The chunk when (cid, tok) holds its lease, else nil: a token is never given out twice.
local function owned(cid, tok)
  local c = chunk_get(cid)
  return c and c.st == 'L' and c.tok == tok and c or nil
end

local function unlease(c)
  if c.st ~= 'L' then return end
  call('ZREM', P .. 'lease', c.cid)
  call('SREM', P .. 'own:' .. c.w, c.cid)
  c.st = ''
end

local function retire(c)
  unlease(c)
  if c.st == 'D' then call('ZREM', P .. 'dly', c.cid) end
  call('DEL', P .. 'ck:' .. c.cid)
  if call('SREM', P .. 'jc:' .. c.j, c.cid) == 1 and call('EXISTS', P .. 'job:' .. c.j) == 1 then
    call('HINCRBY', P .. 'job:' .. c.j, 'live', -1)
  end
end

local function push_ready(c, front)
  local level = c.c .. ':' .. c.p
  local list, ring = P .. 'rdy:' .. level .. ':' .. c.t, P .. 'ring:' .. level
  if call('LLEN', list) == 0 then
    -- srv tells ageing how long the level has waited: from now on, when nothing waited before.
    if call('RPUSH', ring, c.t) == 1 then
      call('HSET', P .. 'srv', level, now())
      call('SADD', P .. 'classes', 'c:' .. c.c)
    end
  end
  call(front and 'LPUSH' or 'RPUSH', list, c.cid)
end

-- Puts a chunk that stands nowhere into the place where it belongs, and writes it.
local function place(c, job, front, due)
  if due and due > now() then
    c.st = 'D'
    call('ZADD', P .. 'dly', due, c.cid)
  elseif job.paused then
    c.st = 'H'
    call('RPUSH', P .. 'hd:' .. c.j, c.cid)
  elseif c.solo then
    c.st = 'S'
    call('RPUSH', P .. 'sus:' .. c.c, c.cid)
    call('SADD', P .. 'classes', 'c:' .. c.c)
  else
    c.st = 'R'
    push_ready(c, front)
  end
  call('HSET', P .. 'ck:' .. c.cid, 'st', c.st, 'w', '', 'm', c.m, 'sb', 0, 'cr', c.cr, 'rp', c.rp, 'at', now())
end

-- A chunk of the items `m` of lo .. lo+n-1. Parts of a chunk keep its lo, n and pos, so that their manifest position stays true.
local function new_chunk(job, from, m, solo, due)
  local c = {cid = call('INCR', P .. 'cid'), st = '', j = job.jid, lo = from.lo, n = from.n, m = m, solo = solo, cr = from.cr or 0, rp = 0, pos = from.pos,
             p = job.pri, t = job.tenant, c = job.class, id = from.id or ''}
  call('HSET', P .. 'ck:' .. c.cid, 'tok', 0, 'j', c.j, 'lo', c.lo, 'n', c.n, 'solo', solo and 1 or 0, 'pos', c.pos, 'p', c.p, 't', c.t, 'c', c.c, 'id', c.id)
  call('SADD', P .. 'jc:' .. job.jid, c.cid)
  job_add(job, 'live', 1)
  place(c, job, false, due)
  return c
end

-- After a change of its mask, which belongs to the lease holder or comes from a late result.
local function keep_or_retire(c)
  if c.m == 0 then retire(c) else call('HSET', P .. 'ck:' .. c.cid, 'm', c.m) end
end

local function renew(c, lease_ms) call('ZADD', P .. 'lease', 'XX', now() + lease_ms, c.cid) end

