-- Open a session; its word about limits counts from now on.
-- Keys: counters session_info session_id session_state session_expiry concurrency_limit limit_in_use notify
-- Inputs: ARGV[3] id, [4] ttl in microseconds, [5] what it says of itself (JSON), [6] MessagePack: [name, limit or false, ...]
-- Result: 'opened', 'beaten' (it was open: this is a heartbeat), or 'lost'
-- Atomic: one script. What runs of a name is counted always, so a new limit counts right.
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if session_state then
  if string.sub(session_state, 29, 29) ~= 'a' then
    return 'lost'
  end
  redis.call('ZADD', session_expiry_key, alive_now + tonumber(ARGV[4]), ARGV[3])
  return 'beaten'
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
