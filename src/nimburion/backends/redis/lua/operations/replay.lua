-- replay: makes dead letters pending again. Id, seq, payload and history stay; counts begin anew; fences continue to rise.
-- Keys: job attempt_state ready dead_letter dead_letter_time
-- Arguments: those of scan_jobs.lua; the codes of the filter are F
-- Reply: {field to continue after, 1 if no jobs remain, {id, ...} replayed, {id, ...} not replayed because another job holds their
--   unique key, last of these fields or '', 1 if more jobs match than the maximum}
-- Atomic: one script per call. Each job is a dead letter or pending, never both.
-- Cost: about 500 jobs read per call, O(log n) per replayed job.
local most, ids, held, fields, last_field, more = tonumber(ARGV[6]), {}, {}, {}, '', false

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
  local at = find_head_end(body) + 1
  push_pair(put_job, field, string.sub(body, 1, 12) .. now8 .. string.char(string.byte(body, 21) - FLAG_FINISHED)
    .. string.sub(body, 22, at - 1) .. get_tail(body))
  push_pair(put_state, field, NO_COUNTS .. string.sub(body, at + 23, at + 26) .. string.sub(body, at + 1, at + 8) .. now8
    .. string.sub(body, at + 27, at + 46))
  lane.F = lane.F - 1
  add_waiting(field, lane, string.char(9 - string.byte(body, 22)), now8, false)
  mark_queue(lane.queue)
end

local on, last = scan_jobs(function(field, body)
  if #ids + #held == most then
    more = true
    return true
  end
  last_field = field
  local lane = get_lane(string.sub(body, 1, 4))
  if can_take_key(body, lane) then
    reset_dead_letter(field, body, lane)
    push(ids, get_id(body))
    push(fields, field)
  else
    push(held, get_id(body))
  end
end)

write_buffer()
call_in_batches('ZREM', dead_letter_key, fields)
call_in_batches('ZREM', dead_letter_time_key, fields)
write_lane_counts()
notify_marked()
return { on, last and 1 or 0, ids, held, last_field, more and 1 or 0 }
