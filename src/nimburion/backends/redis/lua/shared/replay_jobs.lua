-- Shared part of replay and advance_bulk_operation: makes dead letters pending again.
-- Keys: dead_letter dead_letter_time
-- Provides: replay_job(field, body) -> whether the dead letter is pending now; false: another job holds its unique key.
--   write_replays(), which performs all writes except those of write_lane_counts() and notify_marked().
-- Cost: O(log n) per job, for n waiting jobs.
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
