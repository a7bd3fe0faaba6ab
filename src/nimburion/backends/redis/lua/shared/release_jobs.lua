-- Part of close_session and rescue: take jobs out of the hands of a session.
-- Keys: job session_state session_expiry closed_session
-- Inputs: fields, leases, turns
-- Result: release_job(field, lease, counts, token) -> whether it waits again (else a cancel was asked for), end_session; `token`:
--   the one that gives it back, or nil
local function release_job(field, lease, counts, token)
  local lane = get_lane(string.sub(lease, 50, 53))
  end_lease(field, lease, lane)
  if string.byte(lease, 41) == 49 then
    finish_job(field, redis.call('HGET', job_key, field), lane, 'X', make_end_record(lease, counts, token))
    return false
  end
  requeue(field, lease, lane, counts, nil, token)
  return true
end

-- A session is over: its id is remembered for a while, so that it never lives again.
local function end_session(id, session_state)
  redis.call('HSET', session_state_key, id, string.sub(session_state, 1, 28) .. 'd' .. now8 .. string.sub(session_state, 38))
  redis.call('ZREM', session_expiry_key, id)
  redis.call('ZADD', closed_session_key, now, id)
end
