-- How jobs and items end, and what becomes of chunks whose holder is gone.

-- Some chunks of an ended job: they hold nothing but items that others finished. True when none is left.
local function sweep_ended(jid)
  local list = call('SRANDMEMBER', P .. 'jc:' .. jid, STEP)
  for _, cid in ipairs(list) do
    local c = chunk_get(cid)
    if c then retire(c) else call('SREM', P .. 'jc:' .. jid, cid) end
  end
  return #list < STEP
end

-- Ends the job when its last item is accounted for. Whoever changes a counter calls this before it returns.
local function finish(job)
  local v = call('HMGET', P .. 'job:' .. job.jid, 'total', 'cur', 'done', 'dead', 'canc')
  if (job.st ~= 'RUN' and job.st ~= 'CXL') or v[1] ~= v[2] then return end
  if tonumber(v[3]) + tonumber(v[4]) + tonumber(v[5]) ~= tonumber(v[1]) then return end
  local jid, ended = job.jid, job.st == 'CXL'
  job.st = ended and 'CXD' or 'FIN'
  job_set(job, 'st', job.st, 'finished', now())
  event(ended and 'cancelled' or 'finished', jid, '')
  stat('live_jobs', -1)
  stat('live_items', -tonumber(v[1]))
  call('ZADD', P .. 'exp', now() + tonumber(call('HGET', P .. 'job:' .. jid, 'ttl')), jid)
  call('UNLINK', P .. 'er:' .. jid, P .. 'hd:' .. jid)
  if ended or v[4] == '0' then call('UNLINK', P .. 'it:' .. jid) end -- a replay needs the texts of dead items
  if sweep_ended(jid) then call('SREM', P .. 'sweep', jid) else call('SADD', P .. 'sweep', jid) end
end

-- Cancels what a chunk still has to do, and the chunk. The caller calls finish().
local function cancel_chunk(c, job)
  local left = #offsets(without(c.m, done_mask(c.j, c.lo)))
  retire(c)
  if job.st == 'CXL' then
    job_add(job, 'canc', left)
    stat('cancelled', left)
  end
end

-- A dead letter. The id is unknown (and the record left to whoever reads the manifest) when no worker lived long enough to say it.
local function bury(c, job, off, d)
  local idx = c.lo + off
  if d.id == '' and job.kind == 'inline' then
    local text = call('HGET', P .. 'it:' .. job.jid, idx)
    local ok, item = pcall(cjson.decode, text or '')
    if ok and type(item) == 'table' and type(item.id) == 'string' then d.id = item.id end
  end
  if d.record == '' and d.id ~= '' then
    d.record = '{"v":1,"id":' .. quote(d.id) .. ',"status":"failed","reason":' .. quote(d.reason) .. ',"message":' .. quote(d.message) .. '}'
  end
  call('HSET', P .. 'dd:' .. job.jid, idx, '{"reason":' .. quote(d.reason) .. ',"message":' .. quote(d.message) .. ',"id":' .. quote(d.id) .. ',"attempts":' ..
       string.format('%d', d.attempts) .. ',"worker":' .. quote(d.worker) .. ',"at":' .. string.format('%.0f', now()) .. ',"lo":' .. string.format('%.0f', c.lo) ..
       ',"n":' .. c.n .. ',"pos":' .. quote(c.pos) .. ',"record":' .. quote(d.record) .. '}')
  stat('dead', 1)
  if job.route == 'stream' then emit(job, idx, d.id, d.record) end
  local dead, max = call('HINCRBY', P .. 'job:' .. job.jid, 'dead', 1), cfg('max_dead')
  -- At each multiple, so that a job resumed by its owner goes on for as long again.
  if max > 0 and dead % max == 0 and not job.paused and job.st == 'RUN' then
    job_pause(job, 'paused: ' .. dead .. ' items are dead; resume or cancel it')
  end
end

-- What the death of an engine or a worker means to one item: alone it counts, in company it only makes a suspect. True when the item died of it.
local function crashed(c, job, off, d, limit)
  job_add(job, 'crashes', 1)
  stat('crashed', 1)
  local cr = c.cr + (c.solo and 1 or 0)
  if cr >= limit then
    d.attempts = cr
    bury(c, job, off, d)
    return true
  end
  new_chunk(job, {lo = c.lo, n = c.n, pos = c.pos, cr = cr, id = d.id ~= '' and d.id or c.id}, 2 ^ off, true)
  return false
end

-- The holder of this chunk is gone.
local function reap_chunk(c)
  local w, job = c.w, job_get(c.j)
  unlease(c)
  stat('reaped', 1)
  if not job or job.st ~= 'RUN' then
    if job then cancel_chunk(c, job) finish(job) else retire(c) end
    return
  end
  c.m = without(c.m, done_mask(c.j, c.lo))
  c.rp = c.rp + 1
  -- An item may kill its worker so fast that no one hears it has started: after some deaths all are under suspicion.
  local guilty = c.rp >= cfg('max_reaped') and c.m or band(c.m, c.sb)
  c.m = without(c.m, guilty)
  for _, off in ipairs(offsets(guilty)) do
    crashed(c, job, off, {id = c.id, reason = 'crash', message = 'the worker died while this item ran alone', record = '', worker = w}, cfg('max_crash'))
  end
  if c.m == 0 then retire(c) else place(c, job, true) end
  if guilty ~= 0 then finish(job) end
end

