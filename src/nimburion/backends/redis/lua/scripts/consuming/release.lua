-- release: releases leases of a session that stays open. Nothing counts as a failure or a loss.
-- Keys: session_state session_leases lease
-- Arguments: ARGV[3] session id, [4] leases: seq 8 | token 20 each, [5] a nonce whose leases are released, too, or '',
--   [6] maximum number of leases to release
-- Reply: 'lost' (the session is not alive), 'more' (call again) or 'done'
-- Atomic: one script per call. Between calls the session is valid and has fewer leases.
-- Cost: O(log n) per lease of the session, for n waiting jobs.
local id, released_leases, nonce, limit = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local session = read_open_session(redis.call('HGET', session_state_key, id))
if not session then
  return 'lost'
end
local to_release = read_lease_names(released_leases)
local released, more = 0, false
for _, field in ipairs(list_session_leases(session.session4)) do
  local lease = read_lease(redis.call('HGET', lease_key, field))
  local token = get_token(lease)
  if to_release[field .. token] or lease.nonce == nonce then
    if released == limit then
      more = true
      break
    end
    released = released + 1
    refund_limits(field, get_lane(lease.lane4), lease)
    release_job(field, lease, lease.counts, token)
  end
end
write_buffer()
resolve_flows()
write_lane_counts()
notify_marked()
return more and 'more' or 'done'
