-- heartbeat: extends a session by its ttl and returns what its worker should know.
-- Keys: session_state session_info session_expiry cancel_requested lease job paused_queue concurrency_limit limit_in_use
-- Arguments: ARGV[3] session id
-- Reply: {'lost'}: the session is not alive
--   {'alive', {seq 8, token 20, id, ... of leases to cancel}, paused queues, {job name, limit, in use, ...}}
-- Atomic: one script. A rescue comes before it (and the session is lost) or after it.
-- Cost: O(requested cancels + job names of the session).
local id = ARGV[3]
local session = read_open_session(redis.call('HGET', session_state_key, id))
if not session then
  return { 'lost' }
end
redis.call('ZADD', session_expiry_key, alive_now + (struct.unpack('>I8', session.ttl8)), id)

local cancelled = {}
if redis.call('HLEN', cancel_requested_key) > 0 then
  for _, field in ipairs(redis.call('HKEYS', cancel_requested_key)) do
    local record = redis.call('HGET', lease_key, field)
    local lease = record and read_lease(record)
    if lease and lease.session4 == session.session4 then
      push_pair(cancelled, field, get_token(lease))
      push(cancelled, get_id(redis.call('HGET', job_key, field)))
    end
  end
end

local limits = {}
if redis.call('HLEN', concurrency_limit_key) > 0 then
  for _, name in ipairs(cjson.decode(redis.call('HGET', session_info_key, id)).names) do
    local limit = redis.call('HGET', concurrency_limit_key, name)
    if limit then
      push_pair(limits, name, limit)
      push(limits, redis.call('HGET', limit_in_use_key, name) or '0')
    end
  end
end
return { 'alive', cancelled, redis.call('HKEYS', paused_queue_key), limits }
