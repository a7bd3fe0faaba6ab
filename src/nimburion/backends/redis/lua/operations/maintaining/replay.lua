-- replay: makes dead letters pending again. Id, seq, payload and history stay; counts start at 0 again; fences continue to rise.
-- Keys: job attempt_state ready dead_letter dead_letter_time
-- Arguments: those of scan_jobs.lua; the codes of the filter are F
-- Reply: {field to continue after, 1 if no jobs remain, {id, ...} replayed, {id, ...} not replayed because another job holds their
--   unique key, last of these fields or '', 1 if more jobs match than the maximum}
-- Atomic: one script per call. Each job is a dead letter or pending, never both.
-- Cost: about 500 jobs read per call, O(log n) per replayed job.
local limit, ids, held_ids, fields, last_field, more = tonumber(ARGV[6]), {}, {}, {}, '', false

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

local function reset_dead_letter(field, body, lane)
  push_pair(writes.put_job, field, make_pending_job(body, now8))
  local attempts = read_job_end(body)
  attempts.counts = NO_COUNTS
  push_pair(writes.put_state, field, make_attempt_state(attempts, now8))
  lane[FAILED] = lane[FAILED] - 1
  add_waiting(field, lane, get_rank(body), now8, false)
  mark_queue(lane.queue)
end

local after, last = scan_jobs(function(field, body)
  if #ids + #held_ids == limit then
    more = true
    return true
  end
  last_field = field
  local lane = get_lane(get_lane_number(body))
  if can_take_key(body, lane) then
    reset_dead_letter(field, body, lane)
    push(ids, get_id(body))
    push(fields, field)
  else
    push(held_ids, get_id(body))
  end
end)

write_buffer()
call_in_batches('ZREM', dead_letter_key, fields)
call_in_batches('ZREM', dead_letter_time_key, fields)
write_lane_counts()
notify_marked()
return { after, last and 1 or 0, ids, held_ids, last_field, more and 1 or 0 }
