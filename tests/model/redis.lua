-- As much of Redis as the queue's functions use, over plain tables: one database, a clock that the model sets, no expiry. Unordered replies are sorted, so that
-- a run is repeatable. A command it does not know is an error.
--
-- States share what they have in common: R.load takes a database whose entries then are never changed, but copied when first written.

local R = {db = {}, clock = 0, run = 'a1', functions = {}, mine = {}}

function R.load(db, clock)
  R.db, R.clock, R.mine = {}, clock, {}
  for key, e in pairs(db) do R.db[key] = e end
end

local digits = setmetatable({}, {__index = function(t, x)
  local s = string.format('%.17g', x)
  if x < 1000 then t[x] = s end
  return s
end})

local function text(x)
  if type(x) == 'string' then return x end
  assert(type(x) == 'number', 'an argument that is neither text nor number')
  return digits[x]
end

local EMPTY = {h = function() return {} end, l = function() return {} end, s = function() return {} end, z = function() return {} end, b = function() return {} end,
               x = function() return {n = 0} end}

-- The value of a key of kind k, to read, or nil.
local function get(key, k)
  local e = R.db[key]
  assert(not e or e.k == k, 'WRONGTYPE ' .. key)
  return e and e.v
end

-- The same to write; made when `make`.
local function edit(key, k, make)
  local e = R.db[key]
  assert(not e or e.k == k, 'WRONGTYPE ' .. key)
  if R.mine[key] and e then return e.v end
  if not e and not make then return nil end
  local v = EMPTY[k]()
  for m, x in pairs(e and e.v or {}) do v[m] = x end
  R.db[key], R.mine[key] = {k = k, v = v}, true
  return v
end

local function drop_if_empty(key, v) if next(v) == nil then R.db[key] = nil end end

local function sorted(t)
  local list = {}
  for m in pairs(t) do list[#list + 1] = m end
  table.sort(list)
  return list
end

local C = {}

function C.TIME() return {string.format('%d', math.floor(R.clock / 1000)), string.format('%d', R.clock % 1000 * 1000)} end
function C.EXISTS(...)
  local n = 0
  for _, key in ipairs{...} do if R.db[key] then n = n + 1 end end
  return n
end
function C.DEL(...)
  local n = C.EXISTS(...)
  for _, key in ipairs{...} do R.db[key] = nil end
  return n
end
C.UNLINK = C.DEL
function C.GET(key) local e = R.db[key] return e and e.v or false end
function C.SET(key, v) R.db[key] = {k = 't', v = v} return {ok = 'OK'} end
function C.INCR(key)
  local n = tonumber(C.GET(key) or '0') + 1
  C.SET(key, text(n))
  return n
end
function C.INCRBY(key, by)
  local n = tonumber(C.GET(key) or '0') + tonumber(by)
  C.SET(key, text(n))
  return n
end
function C.PEXPIRE() return 1 end

function C.HSET(key, ...)
  local h, a, n = edit(key, 'h', true), {...}, 0
  assert(#a > 0 and #a % 2 == 0)
  for i = 1, #a, 2 do
    if not h[a[i]] then n = n + 1 end
    h[a[i]] = a[i + 1]
  end
  return n
end
function C.HGET(key, f) local h = get(key, 'h') return h and h[f] or false end
function C.HMGET(key, ...)
  local list, h = {}, get(key, 'h') or {}
  for i, f in ipairs{...} do list[i] = h[f] or false end
  return list
end
function C.HDEL(key, f)
  local h = edit(key, 'h')
  if not h or not h[f] then return 0 end
  h[f] = nil
  drop_if_empty(key, h)
  return 1
end
function C.HEXISTS(key, f) return C.HGET(key, f) and 1 or 0 end
function C.HINCRBY(key, f, by)
  local h = edit(key, 'h', true)
  local n = tonumber(h[f] or '0') + tonumber(by)
  h[f] = text(n)
  return n
end
function C.HSCAN(key)
  local list, h = {}, get(key, 'h') or {}
  for _, f in ipairs(sorted(h)) do
    list[#list + 1] = f
    list[#list + 1] = h[f]
  end
  return {'0', list}
end

function C.LLEN(key) return #(get(key, 'l') or {}) end
function C.RPUSH(key, v) local l = edit(key, 'l', true) l[#l + 1] = v return #l end
function C.LPUSH(key, v) local l = edit(key, 'l', true) table.insert(l, 1, v) return #l end
function C.LINDEX(key, i) return (get(key, 'l') or {})[tonumber(i) + 1] or false end
local function pop(key, at)
  local l = edit(key, 'l')
  if not l then return false end
  local v = table.remove(l, at)
  drop_if_empty(key, l)
  return v
end
function C.LPOP(key, count)
  if not count then return pop(key, 1) end
  local list = {}
  while #list < tonumber(count) do
    local v = pop(key, 1)
    if not v then break end
    list[#list + 1] = v
  end
  return #list > 0 and list or false
end
function C.RPOP(key) return pop(key) end
function C.LMOVE(from, to) C.RPUSH(to, C.LPOP(from)) end
function C.LRANGE(key) return get(key, 'l') or {} end

function C.SADD(key, m) local s = edit(key, 's', true) local new = not s[m] s[m] = true return new and 1 or 0 end
function C.SREM(key, m)
  local s = edit(key, 's')
  if not s or not s[m] then return 0 end
  s[m] = nil
  drop_if_empty(key, s)
  return 1
end
function C.SCARD(key) return #sorted(get(key, 's') or {}) end
function C.SMEMBERS(key) return sorted(get(key, 's') or {}) end
function C.SRANDMEMBER(key, count)
  local list = sorted(get(key, 's') or {})
  return count and list or list[1] or false
end

function C.ZADD(key, a, b, c)
  if a == 'XX' then
    local z = edit(key, 'z')
    if z and z[c] then z[c] = tonumber(b) end
    return 0
  end
  edit(key, 'z', true)[b] = tonumber(a)
  return 1
end
function C.ZREM(key, m)
  local z = edit(key, 'z')
  if not z or not z[m] then return 0 end
  z[m] = nil
  drop_if_empty(key, z)
  return 1
end
function C.ZSCORE(key, m) local z = get(key, 'z') return z and z[m] and text(z[m]) or false end
function C.ZCARD(key) return #sorted(get(key, 'z') or {}) end
function C.ZRANGEBYSCORE(key, _, max)
  local list, z = {}, get(key, 'z') or {}
  for _, m in ipairs(sorted(z)) do if z[m] <= tonumber(max) then list[#list + 1] = m end end
  return list
end
function C.ZREMRANGEBYSCORE(key, min, max) for _, m in ipairs(C.ZRANGEBYSCORE(key, min, max)) do C.ZREM(key, m) end end

function C.SETBIT(key, i)
  local b = edit(key, 'b', true)
  local old = b[i] and 1 or 0
  b[i] = true
  return old
end
function C.GETBIT(key, i) return (get(key, 'b') or {})[i] and 1 or 0 end
function C.BITFIELD_RO(key, _, _, lo)
  local b, n = get(key, 'b') or {}, 0
  for off = 0, 31 do if b[text(tonumber(lo) + off)] then n = n + 2 ^ (31 - off) end end
  return {n}
end

function C.BITCOUNT(key, from, to)
  local n = 0
  for i in pairs(get(key, 'b') or {}) do
    if tonumber(i) >= tonumber(from) and tonumber(i) <= tonumber(to) then n = n + 1 end
  end
  return n
end
function C.INFO() return 'run_id:' .. R.run .. '\r\n' end

function C.XADD(key, ...)
  local x, a, e = edit(key, 'x', true), {...}, {}
  while a[1] ~= '*' do table.remove(a, 1) end
  for i = 2, #a, 2 do e[a[i]] = a[i + 1] end
  x.n = x.n + 1
  x[x.n] = e
  return x.n .. '-0'
end
function C.XLEN(key) return (get(key, 'x') or {n = 0}).n end
function C.XGROUP() return {ok = 'OK'} end

redis = {
  register_function = function(f) R.functions[f.function_name] = f.callback end,
  error_reply = function(s) return {err = s} end,
  sha1hex = function() return string.rep('f', 40) end, -- the longest delay
}
function redis.call(name, ...)
  local a = {...}
  for i = 1, select('#', ...) do a[i] = text(a[i]) end
  return (C[name] or error('the model knows no ' .. name))(unpack(a))
end
redis.pcall = redis.call

-- Texts without escapes, and the flat objects of dead letters: all the model meets.
cjson = {
  encode = function(s) return '"' .. s:gsub('"', '\\"') .. '"' end,
  decode = function(s)
    local o = {}
    for k, v in s:gmatch('"(%w+)":("?[^,"}]*)') do o[k] = v:sub(1, 1) == '"' and v:sub(2) or tonumber(v) end
    return o
  end,
}

-- FCALL; an error reply is an error here: the model sends nothing that may be refused.
function R.fcall(name, ...)
  local a = {...}
  for i = 1, #a do a[i] = text(a[i]) end
  local reply = R.functions[name]({'q:'}, a)
  if type(reply) == 'table' and reply.err then error(name .. ': ' .. reply.err) end
  return reply
end

return R
