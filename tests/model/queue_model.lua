--[[
Model check of the queue (luajit queue_model.lua QUEUE.LUA REDIS.LUA [MISHAPS, 2]): the functions as they run in Redis, over an in-memory Redis, in all orders.

A job of two items in one chunk, two workers. Every state that any order of these steps reaches, with at most MISHAPS of the marked ones, is visited once:
  claim one or two items, start, commit an item (also late, also again: workers forget nothing), time passes (delays are over), resume;
  * a grant that never arrives, a worker that dies, leases that run out, release, an item failing in each way, cancel, pause, replay.
A call is one step: Redis runs it as a whole, so a crash of anybody lies between two steps, and is "nothing more comes from it".

In each state: counters, bits, places, records and events agree. From each state: if from now on one honest worker does what it gets, everything ends.
--]]

local source, emulator, MISHAPS = arg[1], arg[2], tonumber(arg[3] or '2')
local R = dofile(emulator)
if not pcall(require, 'bit') then error('needs LuaJIT') end
bit = require('bit')
local library = io.open(source):read('*a'):gsub('^#![^\n]*', '')
assert(loadstring(library, 'queue.lua'))()

local JOB, TOTAL = 'j', 2

----------------------------------------------------------------------------------------------- states

-- What a state is, without what only differs in names: chunk ids and tokens by rank, no times, no statistics. Grants that are as good as each other are one.
local SKIP = {['q:stat'] = true, ['q:seq'] = true, ['q:tok'] = true, ['q:cid'] = true, ['q:cfg'] = true, ['q:srv'] = true, ['q:classes'] = true, ['q:jobs'] = true,
              ['q:ev'] = true, ['q:exp'] = true, ['q:sw:'] = true, ['q:def::1'] = true}
local FIELD_SKIP = {at = true, created = true, finished = true, retries = true, crashes = true, msg = true, id = true}

local RANKED = {l = true, s = true, z = true} -- hold ids of chunks

local function entry_identity(key, e, cid)
  local part = {}
  if e.k == 't' then return e.v end
  if e.k == 'x' then
    for i = 1, e.v.n do part[i] = e.v[i].idx or '' end
  else
    for f, v in pairs(e.v) do
      if not FIELD_SKIP[f] and not (cid and f == 'tok') then
        if key == 'q:dd:' .. JOB then v = v:match('^{"reason":"(%w+)"') end
        part[#part + 1] = f .. '=' .. tostring(v)
      end
    end
  end
  table.sort(part)
  return table.concat(part, ',')
end

local function identity(s)
  local cids, rank, out = {}, {}, {}
  for key in pairs(s.db) do
    local cid = key:match('^q:ck:(%d+)$')
    if cid then cids[#cids + 1] = tonumber(cid) end
  end
  table.sort(cids)
  for i, cid in ipairs(cids) do rank[tostring(cid)] = 'c' .. i end
  local function name(x) return rank[x] or (tonumber(x) and '-') or x end
  local keys = {}
  for key in pairs(s.db) do if not SKIP[key] then keys[#keys + 1] = key end end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local e = s.db[key]
    local cid = key:match('^q:ck:(%d+)$')
    if not RANKED[e.k] then
      e.id = e.id or entry_identity(key, e, cid)
    end
    local part = RANKED[e.k] and {} or e.id
    if e.k == 'l' then
      for _, v in ipairs(e.v) do if rank[v] or not tonumber(v) then part[#part + 1] = name(v) end end -- ids of chunks that are gone mean nothing
    elseif RANKED[e.k] then
      for m in pairs(e.v) do part[#part + 1] = name(m) end
      table.sort(part)
    end
    if #part > 0 then out[#out + 1] = (cid and rank[cid] or key) .. '{' .. (RANKED[e.k] and table.concat(part, ',') or part) .. '}' end
  end
  s.content = table.concat(out, ' ')
  local grants, seen = {}, {}
  for _, g in ipairs(s.grants) do
    local ck = s.db['q:ck:' .. g.cid]
    local live = ck and ck.v.st == 'L' and ck.v.tok == tostring(g.tok)
    local id = (live and g.w or '') .. (ck and rank[tostring(g.cid)] or '-') .. (live and '!' or '') .. g.mask
    if not seen[id] then
      seen[id] = true
      grants[#grants + 1] = {id = id, g = g}
    end
  end
  table.sort(grants, function(a, b) return a.id < b.id end)
  s.grants = {}
  for i, x in ipairs(grants) do
    s.grants[i] = x.g
    out[#out + 1] = x.id
  end
  out[#out + 1] = s.mishaps .. (s.cancelled and 'x' or '')
  return table.concat(out, ' ')
end

----------------------------------------------------------------------------------------------- invariants

local function count(t) local n = 0 for _ in pairs(t or {}) do n = n + 1 end return n end
local function value(s, key) local e = s.db['q:' .. key] return e and e.v end

local function places(s, ids)
  local function add(cid, where) if ids[cid] then table.insert(ids[cid], where) end end
  for key, e in pairs(s.db) do
    if key:match('^q:rdy:') then for _, cid in ipairs(e.v) do add(cid, 'R') end end
    if key:match('^q:sus:') then for _, cid in ipairs(e.v) do add(cid, 'S') end end
    if key:match('^q:hd:') then for _, cid in ipairs(e.v) do add(cid, 'H') end end
    if key == 'q:dly' then
      for cid in pairs(e.v) do
        assert(ids[cid], 'delay of a chunk that is gone')
        add(cid, 'D')
      end
    end
    if key == 'q:lease' then
      for cid in pairs(e.v) do
        assert(ids[cid], 'lease of a chunk that is gone')
        add(cid, 'L')
      end
    end
    if key:match('^q:own:') then
      for cid in pairs(e.v) do
        local ck = value(s, 'ck:' .. cid)
        assert(ck and ck.st == 'L' and 'q:own:' .. ck.w == key, 'own without lease')
      end
    end
  end
end

local function check(s)
  local job, done, dead = value(s, 'job:' .. JOB), value(s, 'dn:' .. JOB) or {}, value(s, 'dd:' .. JOB) or {}
  local n = {done = tonumber(job.done), dead = tonumber(job.dead), canc = tonumber(job.canc)}
  local sum, over = n.done + n.dead + n.canc, job.st == 'FIN' or job.st == 'CXD'
  assert(n.done == count(done), 'done bits')
  assert(n.dead == count(dead), 'dead letters')
  assert((sum == TOTAL) == over and sum <= TOTAL, 'sum of ' .. sum .. ' items in ' .. job.st)
  local ids, held = {}, {}
  for key, e in pairs(s.db) do
    local cid = key:match('^q:ck:(%d+)$')
    if cid then
      ids[cid] = {}
      assert(value(s, 'jc:' .. JOB)[cid], 'chunk outside jc')
      local m = tonumber(e.v.m)
      assert(m > 0 and m < 2 ^ tonumber(e.v.n), 'mask')
      for off = 0, TOTAL - 1 do
        if math.floor(m / 2 ^ off) % 2 == 1 then
          assert(not held[off], 'item in two chunks')
          held[off] = true
        end
      end
    end
  end
  assert(count(value(s, 'jc:' .. JOB)) == count(ids) and tonumber(job.live) == count(ids), 'live')
  places(s, ids)
  for cid, list in pairs(ids) do assert(#list == 1 and list[1] == value(s, 'ck:' .. cid).st, 'chunk ' .. cid .. ' is in ' .. table.concat(list)) end
  for off = 0, TOTAL - 1 do
    local d, x = done[tostring(off)], dead[tostring(off)]
    assert(not (d and x), 'done and dead')
    assert(not (x and held[off]), 'dead and in a chunk')
    assert(job.st ~= 'RUN' or d or x or held[off], 'lost item')
  end
  assert(not over or next(ids) == nil, 'chunks of a job that is over')
  local records, events = {}, {}
  local res, ev = value(s, 'res') or {n = 0}, value(s, 'ev') or {n = 0}
  for i = 1, res.n do
    assert(not records[res[i].idx], 'a second record')
    records[res[i].idx] = true
    assert(done[res[i].idx], 'record of an item that is not done')
  end
  assert(count(records) == n.done, 'records')
  for i = 1, ev.n do events[ev[i].type] = (events[ev[i].type] or 0) + 1 end
  assert((events.finished or 0) == tonumber(job.epoch) - (job.st == 'FIN' and 0 or 1), 'finished events')
  assert((events.cancelled or 0) == (job.st == 'CXD' and 1 or 0), 'cancelled events')
  local stat = value(s, 'stat')
  assert(tonumber(stat.live_jobs) == (over and 0 or 1) and tonumber(stat.live_items) == (over and 0 or TOTAL), 'open jobs')
end

----------------------------------------------------------------------------------------------- steps

local function off_list(mask)
  local list = {}
  for off = 0, 31 do if math.floor(mask / 2 ^ off) % 2 == 1 then list[#list + 1] = off end end
  return list
end

local function claim(s, w, credits, arrives)
  for _, g in ipairs(R.fcall('btc_claim', w, 1000, credits, '')) do
    if arrives then s.grants[#s.grants + 1] = {w = w, cid = g[1], tok = g[2], lo = g[4], mask = g[6]} end
  end
end
local function commit(g, off) R.fcall('btc_commit', g.cid, g.tok, JOB, g.lo, 1000, g.w, off, 'id', '{}') end
local function failure(g, off, kind) R.fcall('btc_fail', g.cid, g.tok, JOB, g.lo, 1000, g.w, off, kind, 'id', 'decode', 'oops', '{}') end
local function later() R.clock = R.clock + 1000000 end

-- All steps from a state: {name, function, mishap?, must it change nothing?}. Those that plainly change nothing are left out.
local function steps(s)
  local list, job, done = {}, value(s, 'job:' .. JOB), value(s, 'dn:' .. JOB) or {}
  local function add(name, f, mishap, idle) if not mishap or s.mishaps > 0 then list[#list + 1] = {name, f, mishap, idle} end end
  for _, w in ipairs{'a', 'b'} do
    if w == 'b' and not s.begun then break end -- the two are alike: a is the first to do anything
    for credits = 1, 2 do
      add('claim ' .. w .. credits, function(n) claim(n, w, credits, true) end)
      add('claim lost ' .. w .. credits, function(n) claim(n, w, credits, false) end, true)
    end
    if value(s, 'own:' .. w) then add('die ' .. w, function() R.fcall('btc_reap_owner', w) end, true) end
  end
  for i, g in ipairs(s.grants) do
    local ck = value(s, 'ck:' .. g.cid)
    local live = ck and ck.st == 'L' and ck.tok == tostring(g.tok)
    for _, off in ipairs(off_list(g.mask)) do
      local here = ck and math.floor(tonumber(ck.m) / 2 ^ off) % 2 == 1
      if here or not done[tostring(off)] then add('commit ' .. i .. ' ' .. off, function() commit(g, off) end) end
      if live and here then
        add('start ' .. i .. ' ' .. off, function() R.fcall('btc_start', g.w, g.cid, g.tok, 2 ^ off) end)
        for _, kind in ipairs{'p', 't', 'c'} do add('fail ' .. kind .. i .. ' ' .. off, function() failure(g, off, kind) end, true) end
      elseif ck and here then -- a stale token: must change nothing, and is no mishap
        add('stale fail ' .. i .. ' ' .. off, function() failure(g, off, 'p') end, false, true)
      end
    end
    if ck then add('release ' .. i, function() R.fcall('btc_release', g.w, g.cid, g.tok) end, live, not live) end
  end
  if value(s, 'lease') then add('reap', function() later() R.fcall('btc_reap', 256) end, true) end
  if value(s, 'dly') or value(s, 'sweep') then add('promote', function() later() R.fcall('btc_promote', 256) end) end
  if job.paused == '1' then add('resume', function() R.fcall('btc_resume', JOB) end)
  elseif job.st == 'RUN' then add('pause', function() R.fcall('btc_pause', JOB, 'why') end, true) end
  if not s.cancelled then add('cancel', function(n) n.cancelled = true R.fcall('btc_cancel', JOB) end, true) end
  if value(s, 'dd:' .. JOB) then add('replay', function() R.fcall('btc_replay', JOB, '', '0', 256) end, true) end
  return list
end

-- One honest worker, patience: all must end.
local function drain(s)
  R.load(s.db, s.clock)
  local n = {grants = {}}
  for _ = 1, 12 do
    later()
    R.fcall('btc_resume', JOB)
    R.fcall('btc_reap', 256)
    R.fcall('btc_promote', 256)
    n.grants = {}
    claim(n, 'c', 100, true)
    for _, g in ipairs(n.grants) do for _, off in ipairs(off_list(g.mask)) do commit(g, off) end end
    local st = R.db['q:job:' .. JOB].v.st
    if st == 'FIN' or st == 'CXD' then break end
  end
  n.db = R.db
  check(n)
  local st = n.db['q:job:' .. JOB].v.st
  assert(st == 'FIN' or st == 'CXD', 'it does not end: ' .. st)
  for _, key in ipairs{'lease', 'dly', 'own:a', 'own:b', 'own:c', 'jc:' .. JOB, 'sweep'} do assert(not value(n, key), key .. ' is left') end
end

----------------------------------------------------------------------------------------------- search

local function trace(s)
  local list = {}
  while s.parent do
    table.insert(list, 1, s.step)
    s = s.parent
  end
  return table.concat(list, ', ')
end

local verified = {} -- by content: what workers remember and what may still go wrong is nothing to these two

local function verify(s)
  if verified[s.content] then return end
  verified[s.content] = true
  local ok, why = pcall(check, s)
  if ok then ok, why = pcall(drain, s) end
  if not ok then
    print('VIOLATION: ' .. tostring(why) .. '\nafter: ' .. trace(s))
    os.exit(1)
  end
end

local function start()
  R.load({}, 1000000)
  R.fcall('btc_setup', 'max_err', 2, 'max_crash', 2, 'max_reaped', 2)
  R.fcall('btc_submit', JOB, 'manifest', 't', '1', '', 'files', '', '{}', '/m', 'sha', TOTAL, '0', '', '', 0, '')
  R.fcall('btc_expand', JOB, 0, TOTAL, 'p0', 'p2')
  return {db = R.db, clock = R.clock, grants = {}, mishaps = MISHAPS}
end

local first = start()
local queue, last, seen, transitions, deepest = {first}, 1, {}, 0, 0
first.id = identity(first)
seen[first.id] = true
verify(first)
local at = 0
while at < last do
  at = at + 1
  local s = queue[at]
  queue[at] = nil
  for _, step in ipairs(steps(s)) do
    local n = {clock = s.clock, grants = {unpack(s.grants)}, mishaps = s.mishaps - (step[3] and 1 or 0), cancelled = s.cancelled, begun = true, parent = s, step = step[1],
               depth = (s.depth or 0) + 1}
    R.load(s.db, s.clock)
    local ok, why = pcall(step[2], n)
    n.db, n.clock = R.db, R.clock
    if not ok then
      print('ERROR: ' .. tostring(why) .. '\nafter: ' .. trace(n))
      os.exit(1)
    end
    transitions = transitions + 1
    local id = identity(n)
    if step[4] and id ~= s.id then
      print('VIOLATION: it changes something\nafter: ' .. trace(n))
      os.exit(1)
    end
    if not seen[id] then
      n.id = id
      seen[id] = true
      verify(n)
      last = last + 1
      queue[last] = n
      deepest = math.max(deepest, n.depth)
    end
  end
  s.db, s.grants = nil, nil -- a trace needs only the steps
end
print(string.format('states %d transitions %d deepest %d mishaps %d', count(seen), transitions, deepest, MISHAPS))
