-- make_due: makes jobs due that wait for a later time.
-- Keys: job
-- Arguments: ARGV[3...] up to 500 ids
-- Reply: {id, ...} of the jobs that waited for a later time
-- Atomic: one script.
-- Cost: O(log n) per job, for n waiting jobs.
local changed, fields, places, seen = {}, find_fields(ARGV, 3), {}, {}
for i = 1, #ARGV - 2 do
  local field = fields[i]
  if field and not seen[field] then
    seen[field] = true
    push(places, i)
  end
end
for _, i in ipairs(places) do
  if make_job_due(fields[i], redis.call('HGET', job_key, fields[i])) then
    push(changed, ARGV[i + 2])
  end
end
write_buffer()
write_lane_counts()
notify_marked()
return changed
