-- rescue: ends expired sessions, takes back their leases, and continues changes of flows that were left. backends/planning/rescue.py decides the same in Python.
-- Keys: session_state session_info session_expiry ended_session expired_session session_leases lease job history
-- Arguments:
--   ARGV[3] the maximum number of leases
--   ARGV[4] the number of losses that fail a job
--   ARGV[5] and ARGV[6] the history entry of a loss (JSON), before and after the attempt number,
--     start, session and host
--   ARGV[7] the number of losses that make a job a suspect
--   ARGV[8] the fingerprint of the entry
-- Reply: {{id, ...} returned, {id, ...} failed, {id, ...} cancelled, 1 if more are left}
-- Atomic: one script. It tests the expiry and ends the session in one step, so a heartbeat comes before or after.
-- Cost: O(log n) per lease, for n waiting jobs; at most 100 expired sessions per call.
local limit, max_lost, json_before, json_after, suspect_after, fingerprint
  = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
-- As in core/rate_limits.py
local CLOCK_TOLERANCE = 1000000
-- Sessions of before the clock was set back: they expire a TTL from now, unless they send a heartbeat.
for _ = 1, 100 do
  local latest = redis.call('ZRANGE', session_expiry_key, -1, -1, 'WITHSCORES')
  local id, expires_at = latest[1], tonumber(latest[2])
  local ends = id and alive_now + (struct.unpack('>I8', read_session_state(redis.call('HGET', session_state_key, id)).ttl8))
  if not id or expires_at <= ends + CLOCK_TOLERANCE then
    break
  end
  redis.call('ZADD', session_expiry_key, ends, id)
end
local expired = redis.call('ZRANGEBYSCORE', session_expiry_key, '-inf', alive_now, 'LIMIT', 0, 100)
local expired_sessions, sessions = redis.call('ZRANGE', expired_session_key, 0, 99), {}
local put_expired_session, drop_expired_session, put_history = {}, {}, {}
for i, id in ipairs(expired) do
  local session = read_session_state(redis.call('HGET', session_state_key, id))
  local status = session.status
  if status == SESSION_ALIVE and #list_session_leases(session.session4, 2) > 1 then
    status = SESSION_SEVERAL
  end
  local expired_session = session.session4 .. status
  sessions[i] = session
  push(expired_sessions, expired_session)
  push_pair(put_expired_session, 0, expired_session)
end

-- Return the part of a history entry that names the session.
local function name_session(session4)
  local id, host = string.match(find_session(session4) or '\0', '^(%Z*)%z(.*)$')
  return ',"session":' .. cjson.encode(id) .. ',"host":' .. cjson.encode(host)
end

-- Count a loss in the lease and in the history. Return the number of losses.
local function add_loss(field, lease, session_part)
  local failures, lost = struct.unpack('>I4I2', lease.counts)
  lost = lost + 1
  lease.counts = struct.pack('>I4I2', failures, lost)
  local history = redis.call('HGET', history_key, field) or ''
  local started = string.format(',"started_at":%.6f', decode_time(lease.started8, 1) / 1000000)
  push_pair(put_history, field, history .. make_history_entry(json_before .. failures + lost .. started .. session_part .. json_after))
  return lost
end

local returned, failed, cancelled, count, more = {}, {}, {}, 0, false
for _, expired_session in ipairs(expired_sessions) do
  local session4, status = struct.unpack('>c4c1', expired_session)
  local fields, session_part = list_session_leases(session4, limit - count + 1), name_session(session4)
  for _, field in ipairs(fields) do
    if count == limit then
      more = true
      break
    end
    count = count + 1
    local lease, body = read_lease(redis.call('HGET', lease_key, field)), redis.call('HGET', job_key, field)
    local _, lost = struct.unpack('>I4I2', lease.counts)
    -- A suspect runs alone. One that was leased together with other jobs had not started.
    local is_loss = status ~= SESSION_LEFT and not (lost >= suspect_after and status == SESSION_SEVERAL)
    if is_loss then
      lost = add_loss(field, lease, session_part)
    end
    if is_loss and lost >= max_lost and not (lease.is_cancel_requested and not needs_cleanup(field)) then
      local lane = get_lane(lease.lane4)
      end_lease(field, lease, lane)
      finish_job(field, body, lane, FAILED, lease, 'lost', fingerprint)
      push(failed, get_id(body))
    else
      push(release_job(field, lease, lease.counts) and returned or cancelled, get_id(body))
    end
  end
  if more then
    break
  end
  push(drop_expired_session, expired_session)
end

for i, id in ipairs(expired) do
  end_session(id, sessions[i])
  forget_idle_session(id, redis.call('HGET', session_info_key, id))
end
call_in_batches('ZADD', expired_session_key, put_expired_session)
call_in_batches('ZREM', expired_session_key, drop_expired_session)
call_in_batches('HSET', history_key, put_history)
write_buffer()
more = continue_flows(false, true) or more
write_lane_counts()
notify_marked()
return { returned, failed, cancelled, (more or #expired == 100) and 1 or 0 }
