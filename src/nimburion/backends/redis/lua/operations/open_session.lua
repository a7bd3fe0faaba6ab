-- Open a session; its word about limits counts from now on.
-- Keys: n session sessions turn alive gate running bell
-- Inputs: ARGV[3] id, [4] ttl in microseconds, [5] what it says of itself (JSON), [6] MessagePack: [name, limit or false, ...]
-- Result: 'opened', 'beaten' (it was open: this is a heartbeat), or 'lost'
-- Atomic: one script. What runs of a name is counted always, so a new gate counts right.
local turn = redis.call('HGET', turn_key, ARGV[3])
if turn then
  if string.sub(turn, 29, 29) ~= 'a' then
    return 'lost'
  end
  redis.call('ZADD', alive_key, alive_now + tonumber(ARGV[4]), ARGV[3])
  return 'beaten'
end
local n4 = struct.pack('>I4', redis.call('HINCRBY', n_key, 'session', 1))
redis.call('HSET', turn_key, ARGV[3], n4 .. string.rep('\0', 8) .. struct.pack('>I8', tonumber(ARGV[4])) .. now8 .. 'a'
  .. string.rep('\0', 8))
redis.call('HSET', sessions_key, n4, ARGV[3])
redis.call('HSET', session_key, ARGV[3], ARGV[5])
redis.call('ZADD', alive_key, alive_now + tonumber(ARGV[4]), ARGV[3])
local limits = cmsgpack.unpack(ARGV[6])
for i = 1, #limits, 2 do
  if limits[i + 1] then
    redis.call('HSET', gate_key, limits[i], limits[i + 1])
  else
    redis.call('HDEL', gate_key, limits[i])
  end
end
mark_all()
ring()
return 'opened'
