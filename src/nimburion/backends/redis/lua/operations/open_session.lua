-- open_session: opens a session. Its concurrency limits apply from now on.
-- Keys: counters session_info session_id session_state session_expiry concurrency_limit limit_in_use notify
-- Arguments: ARGV[3] session id, [4] ttl in microseconds, [5] the worker's description of itself (JSON),
--   [6] MessagePack: {job name, limit or false, ...}
-- Reply: 'opened', 'renewed' (the session was open; its expiry moves as with a heartbeat) or 'lost' (it was closed)
-- Atomic: one script. Running jobs are counted for names without a limit, too, so a new limit applies to them at once.
-- Cost: O(job names of the session).
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if session_state then
  if string.sub(session_state, 29, 29) ~= 'a' then
    return 'lost'
  end
  redis.call('ZADD', session_expiry_key, alive_now + tonumber(ARGV[4]), ARGV[3])
  return 'renewed'
end
local n4 = struct.pack('>I4', redis.call('HINCRBY', counters_key, 'session', 1))
redis.call('HSET', session_state_key, ARGV[3], n4 .. string.rep('\0', 8) .. struct.pack('>I8', tonumber(ARGV[4])) .. now8 .. 'a'
  .. string.rep('\0', 8))
redis.call('HSET', session_id_key, n4, ARGV[3])
redis.call('HSET', session_info_key, ARGV[3], ARGV[5])
redis.call('ZADD', session_expiry_key, alive_now + tonumber(ARGV[4]), ARGV[3])
local limits = cmsgpack.unpack(ARGV[6])
for i = 1, #limits, 2 do
  if limits[i + 1] then
    redis.call('HSET', concurrency_limit_key, limits[i], limits[i + 1])
  else
    redis.call('HDEL', concurrency_limit_key, limits[i])
  end
end
mark_every_queue()
notify_marked()
return 'opened'
