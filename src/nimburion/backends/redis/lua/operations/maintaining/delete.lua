-- delete: deletes the next finished jobs that match a filter.
-- Keys: job
-- Arguments: those of scan_jobs.lua; the codes of the filter are some of C, F and X
-- Reply: {field to continue after, 1 if no jobs remain, {id, ...}}
-- Atomic: one script per call. Each job is deleted completely or not at all.
-- Cost: about 500 jobs read per call, O(log n) per deleted job.
local limit, ids, fields, bodies = tonumber(ARGV[6]), {}, {}, {}
local after, last = scan_jobs(function(field, body)
  push(ids, get_id(body))
  push(fields, field)
  push(bodies, body)
  return #ids == limit, true
end)
delete_jobs(fields, bodies)
write_lane_counts()
return { after, last and 1 or 0, ids }
