-- replay: makes dead letters pending again. Id, seq, payload and history stay; counts start at 0 again; fences continue to rise.
-- Keys: job attempt_state ready dead_letter dead_letter_time
-- Arguments: those of scan_jobs.lua; the codes of the filter are F
-- Reply: {field to continue after, 1 if no jobs remain, {id, ...} replayed, {id, ...} not replayed because another job holds their
--   unique key, last of these fields or '', 1 if more jobs match than the maximum}
-- Atomic: one script per call. Each job is a dead letter or pending, never both.
-- Cost: about 500 jobs read per call, O(log n) per replayed job.
local limit, ids, held_ids, last_field, more = tonumber(ARGV[6]), {}, {}, '', false
local after, last = scan_jobs(function(field, body)
  if #ids + #held_ids == limit then
    more = true
    return true
  end
  last_field = field
  push(replay_job(field, body) and ids or held_ids, get_id(body))
end)

write_replays()
write_lane_counts()
notify_marked()
return { after, last and 1 or 0, ids, held_ids, last_field, more and 1 or 0 }
