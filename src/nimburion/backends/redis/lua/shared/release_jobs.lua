-- Shared part of release, close_session and rescue: ends leases, and ends sessions.
-- Keys: job session_state session_expiry ended_session session_leases session_vitals session_command
-- Provides: release_job(field, lease, counts, token) -> true if the job waits again, false if it was cancelled because a cancel
--   was requested. A durable run that a worker ends is asked to end, and waits again. `token`: the token of a settlement that releases the job, or nil.
--   end_session(id, session)
--   read_lease_names(packed): the leases of an argument, seq 8 | token 20 each, as a set
--   list_session_leases(session4, limit): the fields of the leases of a session; without a limit, all
--   `lease` and `session` are results of read_lease and read_session_state.
-- Cost: O(log n) per lease, for n waiting jobs.
local function read_lease_names(packed)
  local names = {}
  for offset = 1, #packed, 28 do
    names[string.sub(packed, offset, offset + 27)] = true
  end
  return names
end

local function list_session_leases(session4, limit)
  local fields = redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4), 'LIMIT', 0, limit or -1)
  for i, member in ipairs(fields) do
    fields[i] = string.sub(member, 5)
  end
  return fields
end

local function release_job(field, lease, counts, token)
  local lane = get_lane(lease.lane4)
  end_lease(field, lease, lane)
  lease.counts, lease.settled = counts, token or lease.settled
  if lease.is_cancel_requested and not ask_to_end(field) then
    finish_job(field, redis.call('HGET', job_key, field), lane, CANCELLED, lease)
    return false
  end
  requeue(field, lease, lane)
  return true
end

-- End a session. Its id and host are kept for a day: a late call cannot revive it, and the jobs that it ended name it.
local function end_session(id, session)
  session.status, session.ended8 = SESSION_ENDED, now8
  redis.call('HSET', session_state_key, id, make_session_state(session))
  redis.call('HDEL', session_vitals_key, id)
  redis.call('HDEL', session_command_key, id)
  redis.call('ZREM', session_expiry_key, id)
  redis.call('ZADD', ended_session_key, now, id)
end
