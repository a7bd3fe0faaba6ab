-- Shared part of cancel, change_jobs and fire: cancels jobs, makes them due, and makes dead letters pending again. The caller
-- then calls write_buffer().
-- Keys: job attempt_state lease cancel_requested ready scheduled session_id dead_letter dead_letter_time
-- Provides: cancel_job(field, body) -> 'cancelled', 'requested' (the job runs; its session is notified. Or a durable run is asked to end) or 'finished'
--   make_job_due(field, body) -> whether the job waited for a later time
--   replay_job(field, body) -> whether the dead letter is pending now; false: another job holds its unique key
--     The caller notes the members of flows among them (see planning/flows.lua).
--   write_replays(): in place of write_buffer(); it performs all writes except those of write_lane_counts() and notify_marked()
-- Cost: O(log n) per job, for n waiting jobs.
local function cancel_job(field, body)
  if has_flag(body, FLAG_FINISHED) then
    return 'finished'
  end
  local lease = redis.call('HGET', lease_key, field)
  if lease then
    redis.call('HSET', lease_key, field, mark_lease_cancelled(lease))
    redis.call('HSET', cancel_requested_key, field, '1')
    local session = find_session(read_lease(lease).session4)
    if session then
      notify_session(get_session_id(session))
    end
    return 'requested'
  end
  if is_suspended(body) then
    return cancel_wait(field, body) and 'cancelled' or 'requested'
  end
  return cancel_waiting(field, body) and 'cancelled' or 'requested'
end

local function make_job_due(field, body)
  if has_flag(body, FLAG_FINISHED) or redis.call('HEXISTS', lease_key, field) == 1 then
    return false
  end
  local state = redis.call('HGET', attempt_state_key, field)
  local attempts = state and read_attempt_state(state)
    or { due8 = get_due(body), started8 = NO_TIME, counts = NO_COUNTS, fence4 = NO_FENCE, settled = NO_TOKEN }
  if decode_time(attempts.due8, 1) <= now then
    return false
  end
  local lane, code = get_lane(get_lane_number(body)), has_failures(attempts.counts) and RETRY_SCHEDULED or SCHEDULED
  attempts.rank, attempts.tenant = get_rank(body), get_tenant(body)
  push(writes.drop_scheduled, attempts.due8 .. field .. lane.number .. attempts.rank .. code .. get_tenant_suffix(attempts.tenant))
  lane[code] = lane[code] - 1
  requeue(field, attempts, lane, now8)
  return true
end

local replayed_fields = {}

-- Return whether the job has no unique key, or takes it again.
local function can_take_key(body, lane)
  if not has_flag(body, FLAG_UNIQUE_KEY) then
    return true
  end
  local holder = find_key_holder((get_key_field(body, lane.name)))
  if not holder then
    take_key(body, lane.name)
  end
  return not holder or holder == get_id(body)
end

local function replay_job(field, body)
  local lane = get_lane(get_lane_number(body))
  if not can_take_key(body, lane) then
    return false
  end
  push_pair(writes.put_job, field, make_pending_job(body, now8))
  local attempts = read_job_end(body)
  attempts.counts = NO_COUNTS
  push_pair(writes.put_state, field, make_attempt_state(attempts, now8))
  lane[FAILED] = lane[FAILED] - 1
  add_waiting(field, lane, get_rank(body), now8, false, get_tenant(body))
  mark_queue(lane.queue)
  push(replayed_fields, field)
  return true
end

local function write_replays()
  write_buffer()
  call_in_batches('ZREM', dead_letter_key, replayed_fields)
  call_in_batches('ZREM', dead_letter_time_key, replayed_fields)
end
