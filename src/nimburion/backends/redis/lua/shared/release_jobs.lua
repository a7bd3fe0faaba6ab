-- Shared part of release, close_session and rescue: ends leases, and ends sessions.
-- Keys: job session_state session_expiry closed_session
-- Provides: release_job(field, lease, counts, token) -> true if the job waits again, false if it was cancelled because a cancel
--   was requested. `token`: the token of a settlement that releases the job, or nil.
--   end_session(id, session_state)
-- Cost: O(log n) per lease, for n waiting jobs.
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

-- End a session. Its id is kept for a day, so that a late call cannot revive it.
local function end_session(id, session_state)
  redis.call('HSET', session_state_key, id, string.sub(session_state, 1, 28) .. 'd' .. now8 .. string.sub(session_state, 38))
  redis.call('ZREM', session_expiry_key, id)
  redis.call('ZADD', closed_session_key, now, id)
end
