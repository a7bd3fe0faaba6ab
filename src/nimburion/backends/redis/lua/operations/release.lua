-- release: releases leases of a session that stays open. Nothing counts as a failure or a loss.
-- Keys: session_state session_leases lease
-- Arguments: ARGV[3] session id, [4] leases: seq 8 | token 20 each, [5] a nonce whose leases are released, too, or '',
--   [6] maximum number of leases to release
-- Reply: 'gone' (the session is not alive), 'more' (call again) or 'done'
-- Atomic: one script per call. Between calls the session is valid and has fewer leases.
-- Cost: O(log n) per lease of the session, for n waiting jobs.
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
