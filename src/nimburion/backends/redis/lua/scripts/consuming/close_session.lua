-- close_session: closes a session and releases its leases, except those of attempts that still run.
-- Keys: session_state session_info session_expiry ended_session session_leases lease job
-- Arguments: ARGV[3] session id, [4] leases of running attempts: seq 8 | token 20 each, [5] maximum number of leases to release
-- Reply: 'lost' (the session is unknown or ended), 'more' (call again) or 'done'
-- Atomic: one script per call. Between calls the session is valid and has fewer leases.
-- Cost: O(log n) per lease of the session, for n waiting jobs.
local id, running_leases, limit = ARGV[3], ARGV[4], tonumber(ARGV[5])
local state = redis.call('HGET', session_state_key, id)
local session = state and read_session_state(state)
if not session or session.status == SESSION_ENDED then
  return 'lost'
end
local running = read_lease_names(running_leases)
local kept, released, more = 0, 0, false
for _, field in ipairs(list_session_leases(session.session4)) do
  local lease = read_lease(redis.call('HGET', lease_key, field))
  if running[field .. get_token(lease)] then
    kept = kept + 1
  elseif released == limit then
    more = true
    break
  else
    released = released + 1
    release_job(field, lease, lease.counts)
  end
end
write_buffer()
resolve_flows()
write_lane_counts()
if not more and kept > 0 then
  session.status = SESSION_LEFT
  redis.call('HSET', session_state_key, id, make_session_state(session))
elseif not more then
  end_session(id, session)
end
forget_idle_session(id, redis.call('HGET', session_info_key, id)) -- its own worker is not woken in place of another
notify_marked()
return more and 'more' or 'done'
