-- Delete: forget the next of the finished jobs that a filter means.
-- Keys: job
-- Inputs: as scan_jobs.lua has them, the filter's codes being C, F or X
-- Result: {the field to go on behind, 1 if nothing is left there, [id, ...]}
-- Atomic: each call is one script, and leaves a true state: some jobs fewer, each gone whole
local most, ids, fields, bodies = tonumber(ARGV[6]), {}, {}, {}
local on, last = scan_jobs(function(field, body)
  push(ids, get_id(body))
  push(fields, field)
  push(bodies, body)
  return #ids == most, true
end)
delete_jobs(fields, bodies)
write_lane_counts()
return { on, last and 1 or 0, ids }
