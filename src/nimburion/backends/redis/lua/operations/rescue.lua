-- rescue: ends expired sessions and takes back their leases.
-- Keys: session_state session_expiry closed_session dead_session session_leases lease job history
-- Arguments: ARGV[3] maximum number of leases, [4] number of losses that fail a job, [5] and [6] history entry of a loss (JSON) before
--   and after the attempt number, [7] number of losses that make a job a suspect
-- Reply: {{id, ...} returned, {id, ...} failed, {id, ...} cancelled, 1 if more are left}
-- Atomic: one script. It tests the expiry and ends the session in one step, so a heartbeat comes before or after.
-- Cost: O(log n) per lease, for n waiting jobs; at most 100 expired sessions per call.
local most, max_lost, suspect_after = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[7])
local expired = redis.call('ZRANGEBYSCORE', session_expiry_key, '-inf', alive_now, 'LIMIT', 0, 100)
local orphans, session_states, put_orphan, drop_orphan, put_history = redis.call('ZRANGE', dead_session_key, 0, 99), {}, {}, {}, {}
for i, id in ipairs(expired) do
  local session_state = redis.call('HGET', session_state_key, id)
  local dead_session = string.sub(session_state, 1, 4) .. string.sub(session_state, 29, 29)
  session_states[i] = session_state
  push(orphans, dead_session)
  push_pair(put_orphan, 0, dead_session)
end

local returned, failed, cancelled, taken, more = {}, {}, {}, 0, false
for _, dead_session in ipairs(orphans) do
  local session4, left = string.sub(dead_session, 1, 4), string.sub(dead_session, 5) == 'l'
  local members = redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4), 'LIMIT', 0, most - taken + 1)
  for _, member in ipairs(members) do
    if taken == most then
      more = true
      break
    end
    taken = taken + 1
    local field = string.sub(member, 5)
    local lease, body = redis.call('HGET', lease_key, field), redis.call('HGET', job_key, field)
    local counts = string.sub(lease, 42, 47)
    local lost = struct.unpack('>I2', counts, 5)
    -- A suspect runs alone. One that was leased together with other jobs had not begun.
    local spared = left or (lost >= suspect_after and #members > 1)
    if not spared then
      lost = lost + 1
      local json = ARGV[5] .. (struct.unpack('>I4', counts)) + lost .. ARGV[6]
      push_pair(put_history, field, (redis.call('HGET', history_key, field) or '') .. now8
        .. struct.pack('>I4', #json) .. json)
      counts = string.sub(counts, 1, 4) .. struct.pack('>I2', lost)
    end
    if not spared and lost >= max_lost and string.byte(lease, 41) ~= 49 then
      local lane = get_lane(string.sub(lease, 50, 53))
      end_lease(field, lease, lane)
      finish_job(field, body, lane, 'F', make_end_record(lease, counts), 'lost')
      push(failed, get_id(body))
    else
      push(release_job(field, lease, counts) and returned or cancelled, get_id(body))
    end
  end
  if more then
    break
  end
  push(drop_orphan, dead_session)
end

for i, id in ipairs(expired) do
  end_session(id, session_states[i])
end
call_in_batches('ZADD', dead_session_key, put_orphan)
call_in_batches('ZREM', dead_session_key, drop_orphan)
call_in_batches('HSET', history_key, put_history)
write_buffer()
write_lane_counts()
notify_marked()
return { returned, failed, cancelled, (more or #expired == 100) and 1 or 0 }
