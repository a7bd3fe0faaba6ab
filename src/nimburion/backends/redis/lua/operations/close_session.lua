-- close_session: closes a session and releases its leases, except those of attempts that still run.
-- Keys: session_state session_expiry closed_session session_leases lease job
-- Arguments: ARGV[3] session id, [4] leases of running attempts: seq 8 | token 20 each, [5] maximum number of leases to release
-- Reply: 'gone' (the session is unknown or closed), 'more' (call again) or 'done'
-- Atomic: one script per call. Between calls the session is valid and has fewer leases.
-- Cost: O(log n) per lease of the session, for n waiting jobs.
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if not session_state or string.sub(session_state, 29, 29) == 'd' then
  return 'gone'
end
local session4, running, most = string.sub(session_state, 1, 4), {}, tonumber(ARGV[5])
for at = 1, #ARGV[4], 28 do
  running[string.sub(ARGV[4], at, at + 27)] = true
end
local kept, released, more = 0, 0, false
for _, member in ipairs(redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4))) do
  local field = string.sub(member, 5)
  local lease = redis.call('HGET', lease_key, field)
  if running[field .. string.sub(lease, 5, 24)] then
    kept = kept + 1
  elseif released == most then
    more = true
    break
  else
    released = released + 1
    release_job(field, lease, string.sub(lease, 42, 47))
  end
end
write_buffer()
write_lane_counts()
notify_marked()
if more then
  return 'more'
end
if kept > 0 then
  redis.call('HSET', session_state_key, ARGV[3], string.sub(session_state, 1, 28) .. 'l' .. string.sub(session_state, 30))
else
  end_session(ARGV[3], session_state)
end
return 'done'
