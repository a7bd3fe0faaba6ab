-- Beat: the session lives for another ttl; what its worker should know.
-- Keys: turn session alive cancel lease job paused gate running
-- Inputs: ARGV[3] id
-- Result: {'lost'} or {'alive', [seq 8, token 20, id, ... of leases to cancel], paused queues, [name, limit, held, ...]}
local turn = redis.call('HGET', turn_key, ARGV[3])
if not turn or string.sub(turn, 29, 29) ~= 'a' then
  return { 'lost' }
end
redis.call('ZADD', alive_key, alive_now + (struct.unpack('>I8', turn, 13)), ARGV[3])

local wanted, session4 = {}, string.sub(turn, 1, 4)
if redis.call('HLEN', cancel_key) > 0 then
  for _, field in ipairs(redis.call('HKEYS', cancel_key)) do
    local lease = redis.call('HGET', lease_key, field)
    if lease and string.sub(lease, 1, 4) == session4 then
      local id = id_of(redis.call('HGET', job_key, field))
      push_two(wanted, field, string.sub(lease, 5, 24))
      push(wanted, id)
    end
  end
end

local gates = {}
if redis.call('HLEN', gate_key) > 0 then
  for _, name in ipairs(cjson.decode(redis.call('HGET', session_key, ARGV[3])).names) do
    local bound = redis.call('HGET', gate_key, name)
    if bound then
      push_two(gates, name, bound)
      push(gates, redis.call('HGET', running_key, name) or '0')
    end
  end
end
return { 'alive', wanted, redis.call('HKEYS', paused_key), gates }
