-- Set-up, and how work comes in: submissions, entries of `in`, windows of a manifest.

register('btc_version', {'no-writes'}, function() return VERSION end)

-- A server that has begun anew (a restart, a failover, a restored file) may have lost its last writes. Tokens and chunk ids that were given out in them must not
-- come again: two holders of one token would both own the chunk. More than GAP of them are not given out in any history that is lost by accident.
local GAP = 100000000

local function begin_run()
  local run = string.match(call('INFO', 'server'), 'run_id:(%x+)')
  local before = call('HGET', P .. 'cfg', 'run')
  if run == before then return end
  call('HSET', P .. 'cfg', 'run', run)
  if not before then return end
  call('INCRBY', P .. 'tok', GAP)
  call('INCRBY', P .. 'cid', GAP)
end

register('btc_setup', {'allow-oom'}, function(a)
  local schema = tonumber(call('HGET', P .. 'cfg', 'schema') or '0')
  if schema > SCHEMA then return redis.error_reply('SCHEMA the data of this queue is of schema ' .. schema .. ', we know ' .. SCHEMA .. ': upgrade') end
  if #a % 2 ~= 0 then return bad('field without a value') end
  for i = 1, #a, 2 do
    local known = DEFAULTS[a[i]] or string.match(a[i], '^weight:[%w._-]+$')
    if not known or not tonumber(a[i + 1]) or tonumber(a[i + 1]) < 0 then return bad('limit ' .. a[i]) end
  end
  for i = 1, #a, 2 do call('HSET', P .. 'cfg', a[i], a[i + 1]) end
  call('HSET', P .. 'cfg', 'schema', SCHEMA)
  begin_run()
  redis.pcall('XGROUP', 'CREATE', P .. 'in', 'brk', '0', 'MKSTREAM') -- there already: fine
  redis.pcall('XGROUP', 'CREATE', P .. 'res', 'sink', '0', 'MKSTREAM')
  return {'OK', SCHEMA}
end)

-- Names become parts of keys: no colon in a tenant, so that no two levels can mean one list.
local function check_names(jid, tenant, pri, class)
  if #jid > 64 or not string.match(jid, '^[%w._-]+$') then return bad('job id') end
  if #tenant > 64 or not string.match(tenant, '^[%w._-]+$') then return bad('tenant') end
  if not string.match(pri, '^[012]$') then return bad('priority') end
  if #class > 128 or not string.match(class, '^[%w._:-]*$') then return bad('class') end
end

local function busy(items)
  local v = call('HMGET', P .. 'stat', 'live_jobs', 'live_items')
  if tonumber(v[1] or '0') >= cfg('max_jobs') then return {'BUSY', cfg('busy_ms'), 'too many jobs are open'} end
  if tonumber(v[2] or '0') + items > cfg('max_items') then return {'BUSY', cfg('busy_ms'), 'too many items are open'} end
end

local function create_job(j)
  local key = P .. 'job:' .. j.jid
  call('HSET', key, 'st', 'RUN', 'tenant', j.tenant, 'pri', j.pri, 'class', j.class, 'route', j.route, 'kind', j.kind, 'total', j.total, 'cur', 0, 'pos', '',
       'done', 0, 'dead', 0, 'canc', 0, 'rec', 0, 'live', 0, 'paused', '0', 'epoch', 1, 'retries', 0, 'crashes', 0, 'params', j.params)
  call('HSET', key, 'manifest', j.manifest, 'sha', j.sha, 'strict', j.strict, 'dups', j.dups, 'base', j.base, 'msg', '', 'created', now(), 'finished', 0,
       'due', j.due, 'ttl', cfg(j.route == 'stream' and 'stream_ttl_ms' or 'ttl_ms'))
  call('ZADD', P .. 'jobs', now(), j.jid)
  stat('live_jobs', 1)
  stat('live_items', j.total)
  return job_get(j.jid)
end

-- All items of an inline job at once: there are at most 1,000.
local function add_inline(job, texts)
  for i = 1, #texts, STEP do
    local args = {}
    for k = i, math.min(i + STEP - 1, #texts) do
      args[#args + 1] = k - 1
      args[#args + 1] = texts[k]
    end
    call('HSET', P .. 'it:' .. job.jid, unpack(args))
  end
  for lo = 0, #texts - 1, 32 do
    local n = math.min(32, #texts - lo)
    new_chunk(job, {lo = lo, n = n, pos = ''}, 2 ^ n - 1, false, job.due)
  end
  job.cur = #texts
  job_set(job, 'cur', #texts)
end

-- Takes an entry out of `in`. It is the proof that the entry was not ingested before: two brokers may hold the same one.
local function take_entry(id)
  call('XACK', P .. 'in', 'brk', id)
  return call('XDEL', P .. 'in', id) == 1
end

register('btc_submit', nil, function(a)
  local jid, kind, tenant, pri, class, route, key = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
  local entry, texts = a[16], {}
  if #a < 16 then return bad('arguments') end
  local wrong = check_names(jid, tenant, pri, class)
  if wrong then return wrong end
  if (kind ~= 'manifest' and kind ~= 'inline') or (route ~= 'files' and route ~= 'stream') then return bad('kind or route') end
  for i = 17, #a do texts[#texts + 1] = a[i] end
  local total, delay = kind == 'inline' and #texts or tonumber(a[11]), tonumber(a[15])
  if not total or total < 0 or total % 1 ~= 0 or not delay or #texts > 1000 then return bad('number of items or delay') end
  local old = key ~= '' and call('GET', P .. 'key:' .. key) or (call('EXISTS', P .. 'job:' .. jid) == 1 and jid)
  if old then
    if entry ~= '' then take_entry(entry) end
    return {'OLD', (string.match(old, '^[^:]+'))}
  end
  local refused = busy(total)
  if refused then return refused end
  if entry ~= '' and not take_entry(entry) then return {'OLD', jid} end
  if key ~= '' then call('SET', P .. 'key:' .. key, jid, 'PX', cfg('key_ttl_ms')) end
  local job = create_job{jid = jid, kind = kind, tenant = tenant, pri = pri, class = class, route = route, params = a[8], manifest = a[9], sha = a[10], total = total,
                         strict = a[12], dups = a[13], base = a[14], due = delay > 0 and now() + delay or 0}
  if kind == 'inline' then add_inline(job, texts) end
  if kind == 'manifest' and total > 0 then call('SADD', P .. 'todo', jid) end
  finish(job) -- nothing to do in an empty one
  return {'NEW', jid}
end)

register('btc_ingest', nil, function(a)
  local jid, tenant, pri, class = a[1], a[2], a[3], a[4]
  local n = (#a - 4) / 3
  if n < 1 or n > 64 or n % 1 ~= 0 then return bad('entries') end
  local wrong = check_names(jid, tenant, pri, class)
  if wrong then return wrong end
  local there = {}
  for i = 5, #a, 3 do there[#there + 1] = #call('XRANGE', P .. 'in', a[i], a[i]) == 1 and i or nil end
  if #there == 0 then return {jid, 0, n} end
  if call('EXISTS', P .. 'job:' .. jid) == 1 then return bad('the job exists') end
  local refused = busy(#there)
  if refused then return refused end
  local texts = {}
  for _, i in ipairs(there) do
    local key = a[i + 1]
    local fresh = take_entry(a[i]) -- false: the entry is twice in this call
    if fresh and key ~= '' then
      fresh = call('SET', P .. 'key:' .. key, jid .. ':' .. #texts, 'NX', 'PX', cfg('key_ttl_ms'))
    end
    if fresh then texts[#texts + 1] = a[i + 2] end
  end
  if #texts > 0 then
    add_inline(create_job{jid = jid, kind = 'inline', tenant = tenant, pri = pri, class = class, route = 'stream', params = '{}', manifest = '', sha = '', total = #texts,
                          strict = '0', dups = '', base = '', due = 0}, texts)
  end
  stat('ingested', #texts)
  return {#texts > 0 and jid or '', #texts, n - #texts}
end)

register('btc_expand', nil, function(a)
  local job = job_get(a[1])
  if not job or job.st ~= 'RUN' or job.cur >= job.total then call('SREM', P .. 'todo', a[1]) end -- nothing to expand any more
  if not job then return -1 end
  if #a % 2 ~= 1 or #a > 3 + 2 * STEP then return bad('arguments') end
  if job.st ~= 'RUN' or job.kind ~= 'manifest' or job.cur ~= tonumber(a[2]) then return job.cur end
  local sum = job.cur
  for i = 3, #a - 1, 2 do
    local n = tonumber(a[i])
    if not n or n < 1 or n > 32 or n % 1 ~= 0 or sum + n > job.total then return bad('chunk size') end
    sum = sum + n
  end
  for i = 3, #a - 1, 2 do
    local n = tonumber(a[i])
    local m = without(2 ^ n - 1, done_mask(job.jid, job.cur))
    if m > 0 then new_chunk(job, {lo = job.cur, n = n, pos = a[i + 1]}, m, false, job.due) end
    job.cur = job.cur + n
  end
  job_set(job, 'cur', job.cur, 'pos', a[#a])
  if job.cur >= job.total then
    call('SREM', P .. 'todo', job.jid)
    finish(job) -- all may be done already
  end
  return job.cur
end)

