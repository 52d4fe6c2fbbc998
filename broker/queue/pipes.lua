-- Pipes: who holds which blocks, by epochs. One leader plans (btc_lead plan), and every step is a compare-and-swap on the pipe's epoch, so that a leader that
-- lost its lease without noticing changes nothing. `plan` and `load` are texts of the brokers'; nothing here reads them.

local PIPES_MAX = 512

-- PLAN -> FORM -> ACTIVE, any of them -> BROKEN; BROKEN is planned again with the next epoch, or goes.
local AFTER = {PLAN = {FORM = true, BROKEN = true}, FORM = {ACTIVE = true, BROKEN = true}, ACTIVE = {BROKEN = true}, BROKEN = {}}

register('btc_pipe_plan', nil, function(a)
  local pid, epoch, plan = a[1], a[2], a[3]
  if not plan or not string.match(pid, '^%w+$') or #pid > 32 or not string.match(epoch, '^%d+$') then return bad('pipe') end
  local key = P .. 'pipe:' .. pid
  local now_epoch = call('HGET', key, 'epoch') or '0'
  if now_epoch ~= epoch then return {'STALE', now_epoch} end
  if now_epoch == '0' and call('SCARD', P .. 'pipes') >= PIPES_MAX then return {'FULL', '0'} end
  local e = call('INCR', P .. 'pepoch')
  call('HSET', key, 'epoch', e, 'st', 'PLAN', 'plan', plan, 'load', '', 'msg', '', 'since', now())
  call('SADD', P .. 'pipes', pid)
  return {'OK', tostring(e)}
end)

register('btc_pipe_state', {'allow-oom'}, function(a)
  local key, epoch, st = P .. 'pipe:' .. a[1], a[2], a[3]
  local v = call('HMGET', key, 'epoch', 'st')
  if not st or (st ~= 'GONE' and not AFTER[st]) then return bad('state') end
  if v[1] ~= epoch then return {'STALE', v[1] or '0'} end
  if st == 'GONE' then
    call('DEL', key)
    call('SREM', P .. 'pipes', a[1])
  elseif v[2] ~= st then
    if not AFTER[v[2]][st] then return {'NO', v[2]} end
    call('HSET', key, 'st', st, 'msg', a[4] or '', 'since', now())
    if st == 'BROKEN' then event('pipe-broken', '', a[1] .. ' ' .. epoch .. ': ' .. (a[4] or '')) end
  end
  return {'OK', epoch}
end)

register('btc_pipe_load', {'allow-oom'}, function(a)
  local key = P .. 'pipe:' .. a[1]
  if not a[3] or call('HGET', key, 'epoch') ~= a[2] then return 0 end
  call('HSET', key, 'load', a[3])
  return 1
end)

register('btc_pipes', {'no-writes'}, function()
  local out = {}
  for _, pid in ipairs(call('SMEMBERS', P .. 'pipes')) do
    local v = call('HMGET', P .. 'pipe:' .. pid, 'epoch', 'st', 'since', 'msg', 'plan', 'load')
    if v[1] then out[#out + 1] = {pid, v[1], v[2], v[3], v[4], v[5], v[6]} end
  end
  return out
end)
