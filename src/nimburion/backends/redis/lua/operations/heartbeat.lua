-- heartbeat: extends a session by its ttl and returns what its worker should know.
-- Keys: session_state session_info session_expiry cancel_requested lease job paused_queue concurrency_limit limit_in_use
-- Arguments: ARGV[3] session id
-- Reply: {'lost'}: the session is not alive
--   {'alive', {seq 8, token 20, id, ... of leases to cancel}, paused queues, {job name, limit, in use, ...}}
-- Atomic: one script. A rescue comes before it (and the session is lost) or after it.
-- Cost: O(requested cancels + job names of the session).
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if not session_state or string.sub(session_state, 29, 29) ~= 'a' then
  return { 'lost' }
end
redis.call('ZADD', session_expiry_key, alive_now + (struct.unpack('>I8', session_state, 13)), ARGV[3])

local cancelled, session4 = {}, string.sub(session_state, 1, 4)
if redis.call('HLEN', cancel_requested_key) > 0 then
  for _, field in ipairs(redis.call('HKEYS', cancel_requested_key)) do
    local lease = redis.call('HGET', lease_key, field)
    if lease and string.sub(lease, 1, 4) == session4 then
      local id = get_id(redis.call('HGET', job_key, field))
      push_pair(cancelled, field, string.sub(lease, 5, 24))
      push(cancelled, id)
    end
  end
end

local limits = {}
if redis.call('HLEN', concurrency_limit_key) > 0 then
  for _, name in ipairs(cjson.decode(redis.call('HGET', session_info_key, ARGV[3])).names) do
    local maximum = redis.call('HGET', concurrency_limit_key, name)
    if maximum then
      push_pair(limits, name, maximum)
      push(limits, redis.call('HGET', limit_in_use_key, name) or '0')
    end
  end
end
return { 'alive', cancelled, redis.call('HKEYS', paused_queue_key), limits }
