-- open_session: opens a session. Its concurrency limits apply from now on.
-- Keys: counters session_info session_id session_state session_expiry concurrency_limit limit_in_use rate_limit spent_until keyed_limit parked_lane changed_lane notify
-- Arguments: ARGV[3] session id, [4] ttl in microseconds, [5] the worker's description of itself (JSON),
--   [6] MessagePack: {job name, limit or false, interval or false, burst, cost, rate, ...}, [7] host,
--   [8] MessagePack: {job name, its limits by key (see record_format.lua), ...}
-- Reply: 'opened', 'renewed' (the session was open; its expiry moves as with a heartbeat) or 'lost' (it was closed)
-- Atomic: one script. Running jobs are counted for names without a limit, too, so a new limit applies to them at once.
-- Cost: O(job names of the session). A change of limits by key costs no time per parked job here: see changed_lane in keyed_limits.lua.
local id, ttl, info, packed_limits, host = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local record = redis.call('HGET', session_state_key, id)
if record then
  if not read_open_session(record) then
    return 'lost'
  end
  redis.call('ZADD', session_expiry_key, alive_now + ttl, id)
  return 'renewed'
end
local session4 = struct.pack('>I4', redis.call('HINCRBY', counters_key, 'session', 1))
redis.call('HSET', session_state_key, id, make_session_state({
  session4 = session4, number8 = NO_NUMBER, ttl8 = struct.pack('>I8', ttl), opened8 = now8, status = SESSION_ALIVE,
  ended8 = NO_TIME, codes = '',
}))
redis.call('HSET', session_id_key, session4, id .. '\0' .. host)
redis.call('HSET', session_info_key, id, info)
redis.call('ZADD', session_expiry_key, alive_now + ttl, id)
local limits = cmsgpack.unpack(packed_limits)
for i = 1, #limits, 6 do
  if limits[i + 1] then
    redis.call('HSET', concurrency_limit_key, limits[i], limits[i + 1])
  else
    redis.call('HDEL', concurrency_limit_key, limits[i])
  end
  if limits[i + 2] then
    local numbers = struct.pack('>I8I4I4', limits[i + 2], limits[i + 3], limits[i + 4])
    redis.call('HSET', rate_limit_key, limits[i], numbers .. limits[i + 5])
    redis.call('HSETNX', spent_until_key, limits[i], string.format('%.0f', now))
  else
    redis.call('HDEL', rate_limit_key, limits[i])
    redis.call('HDEL', spent_until_key, limits[i])
  end
end

-- Let exchanges return the parked jobs of a name to their lanes: its limits changed.
local function mark_changed(name)
  local flat = redis.call('HGETALL', lane_name_key)
  for i = 1, #flat, 2 do
    if string.match(flat[i + 1], '%z(.*)$') == name
      and #redis.call('ZRANGEBYLEX', parked_lane_key, '[' .. flat[i], range_end(flat[i]), 'LIMIT', 0, 1) > 0 then
      redis.call('HSET', changed_lane_key, flat[i], '1')
    end
  end
end

local keyed = cmsgpack.unpack(ARGV[8])
for i = 1, #keyed, 2 do
  local packed = #keyed[i + 1] > 0 and cmsgpack.pack(keyed[i + 1]) or false
  if packed ~= redis.call('HGET', keyed_limit_key, keyed[i]) then
    if packed then
      redis.call('HSET', keyed_limit_key, keyed[i], packed)
    else
      redis.call('HDEL', keyed_limit_key, keyed[i])
    end
    mark_changed(keyed[i])
  end
end
mark_every_queue()
notify_marked()
return 'opened'
