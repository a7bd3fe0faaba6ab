-- Delete: forget the next of the finished jobs that a filter means.
-- Keys: job
-- Inputs: as scan_jobs.lua has them, the filter's letters being C, F or X
-- Result: {the field to go on behind, 1 if nothing is left there, [id, ...]}
-- Atomic: each call is one script, and leaves a true state: some jobs fewer, each gone whole
local most, ids, fields, bodies = tonumber(ARGV[6]), {}, {}, {}
local on, last = seek(function(field, body)
  push(ids, id_of(body))
  push(fields, field)
  push(bodies, body)
  return #ids == most, true
end)
forget(fields, bodies)
count_lanes()
return { on, last and 1 or 0, ids }
