-- Give back leases of a session that goes on. Nothing is counted.
-- Keys: session_state session_leases lease
-- Inputs: ARGV[3] id, [4] leases: seq 8 | token 20 each, [5] a nonce whose leases are given back too, or '',
--   [6] the most to release
-- Result: 'gone' (nothing was to do), 'more' (call again), 'done'
-- Atomic: each call is one script and leaves a true state: a session with fewer leases
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if not session_state or string.sub(session_state, 29, 29) ~= 'a' then
  return 'gone'
end
local session4, cancelled, most = string.sub(session_state, 1, 4), {}, tonumber(ARGV[6])
for at = 1, #ARGV[4], 28 do
  cancelled[string.sub(ARGV[4], at, at + 27)] = true
end
local released, more = 0, false
for _, member in ipairs(redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4))) do
  local field = string.sub(member, 5)
  local lease = redis.call('HGET', lease_key, field)
  local token = string.sub(lease, 5, 24)
  if cancelled[field .. token] or string.sub(token, 5) == ARGV[5] then
    if released == most then
      more = true
      break
    end
    released = released + 1
    release_job(field, lease, string.sub(lease, 42, 47), token)
  end
end
write_buffer()
write_lane_counts()
notify_marked()
return more and 'more' or 'done'
