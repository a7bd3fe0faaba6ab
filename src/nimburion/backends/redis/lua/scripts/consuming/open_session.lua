-- open_session: opens a session. Its limits apply from now on.
-- Keys: counters session_info session_id session_state session_expiry declared_limit tenant_weight limit
-- Arguments: ARGV[3] session id, [4] ttl in microseconds, [5] the worker's description of itself (JSON),
--   [6] MessagePack: {job name, its limits (declared_limit in record_format.lua) or false, ...}, [7] host,
--   [8] MessagePack: {tenant, weight in hundredths, or false for the default, ...}
-- Reply: 'opened', 'renewed' (the session was open; its expiry moves as with a heartbeat) or 'lost' (it was closed)
-- Atomic: one script. Running jobs are counted for names without a limit, too, so a new limit applies to them at once.
-- Cost: O(job names of the session). A change of limits by key costs no time per parked job here: see changed_lane in parked_jobs.lua.
local id, ttl, info, packed_limits, host = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local record = redis.call('HGET', session_state_key, id)
if record then
  if not read_open_session(record) then
    return 'lost'
  end
  redis.call('ZADD', session_expiry_key, alive_now + ttl, id)
  return 'renewed'
end
local session4 = pack_number(redis.call('HINCRBY', counters_key, 'session', 1), 'sessions')
redis.call('HSET', session_state_key, id, make_session_state({
  session4 = session4, number8 = NO_NUMBER, ttl8 = struct.pack('>I8', ttl), opened8 = now8, status = SESSION_ALIVE,
  ended8 = NO_TIME, codes = '',
}))
redis.call('HSET', session_id_key, session4, id .. '\0' .. host)
redis.call('HSET', session_info_key, id, info)
redis.call('ZADD', session_expiry_key, alive_now + ttl, id)
local declared, limits_changed = cmsgpack.unpack(packed_limits), false

for i = 1, #declared, 2 do
  local name, limits = declared[i], declared[i + 1]
  local limits_before = redis.call('HGET', limit_key, name)
  if limits then
    redis.call('HSET', declared_limit_key, name, cmsgpack.pack(limits))
  else
    redis.call('HDEL', declared_limit_key, name)
  end
  apply_limits(name)
  limits_changed = limits_changed or redis.call('HGET', limit_key, name) ~= limits_before
end
local weights = cmsgpack.unpack(ARGV[8])
for i = 1, #weights, 2 do
  if weights[i + 1] then
    redis.call('HSET', tenant_weight_key, weights[i], weights[i + 1])
  else
    redis.call('HDEL', tenant_weight_key, weights[i])
  end
end
count_running()
write_uses()
if limits_changed then
  mark_every_queue()
  notify_marked()
end
return 'opened'
