-- heartbeat: extends a session by its ttl and returns what its worker should know.
-- Keys: session_state session_info session_expiry session_vitals session_command expired_session flow_change cancel_requested lease job limit limit_use
-- Arguments: ARGV[3] session id, [4] what the worker reports about itself (JSON), '' to keep the last report
-- Reply: {'lost'}: the session is not alive
--   {'alive', {seq 8, token 20, id, ... of leases to cancel}, paused queues, {job name, limit, in use, ...},
--   command or '', number of sessions that expire later than half of the ttl from now, microseconds until the first session
--   expires (0: a rescue has work to do now)}
-- Atomic: one script. A rescue comes before it (and the session is lost) or after it.
-- Cost: O(requested cancels + job names of the session + log n) for n sessions.
local id, vitals = ARGV[3], ARGV[4]
local session = read_open_session(redis.call('HGET', session_state_key, id))
if not session then
  return { 'lost' }
end
local CLOCK_TOLERANCE = 1000000 -- as in rescue.lua
local ttl = struct.unpack('>I8', session.ttl8)
redis.call('ZADD', session_expiry_key, alive_now + ttl, id)
if vitals ~= '' then
  redis.call('HSET', session_vitals_key, id, vitals)
end

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
if redis.call('HLEN', limit_key) > 0 then
  for _, name in ipairs(cjson.decode(redis.call('HGET', session_info_key, id)).names) do
    local packed, own = redis.call('HGET', limit_key, name), 'job:' .. name
    for _, rule in ipairs(packed and cmsgpack.unpack(packed) or {}) do
      if rule[1] == own and rule[2] then
        push_pair(limits, name, tostring(rule[2]))
        push(limits, string.match(redis.call('HGET', limit_use_key, own .. '\0') or '0', '^%d+'))
      end
    end
  end
end
local paused = {}
for queue in pairs(read_pauses()) do
  push(paused, queue)
end

-- Return the microseconds until a rescue has work to do.
local function find_next_expiry()
  local latest = redis.call('ZRANGE', session_expiry_key, -1, -1, 'WITHSCORES')
  if tonumber(latest[2]) > alive_now + ttl + CLOCK_TOLERANCE then
    local other = read_session_state(redis.call('HGET', session_state_key, latest[1]))
    if tonumber(latest[2]) > alive_now + struct.unpack('>I8', other.ttl8) + CLOCK_TOLERANCE then
      return 0
    end
  end
  if redis.call('EXISTS', expired_session_key, flow_change_key) > 0 then
    return 0
  end
  return math.max(0, tonumber(redis.call('ZRANGE', session_expiry_key, 0, 0, 'WITHSCORES')[2]) - alive_now)
end

local fleet_size = redis.call('ZCOUNT', session_expiry_key, '(' .. string.format('%.0f', alive_now + ttl / 2), '+inf')
return {
  'alive', cancelled, paused, limits, redis.call('HGET', session_command_key, id) or '', fleet_size,
  string.format('%.0f', find_next_expiry()),
}
