-- List: the next of the jobs that a filter means.
-- Keys: job
-- Inputs: as scan_jobs.lua has them, and ARGV[8] '1' where payloads are asked for
-- Result: {the field to go on behind, 1 if nothing is left there, names of lanes, [what job_details.lua tells, ...]}
-- Atomic: one script that writes nothing; it stops early when it would tell more than 16 MiB
local most, found, total = tonumber(ARGV[6]), {}, 0
local on, last = scan_jobs(function(field, body, code, attempts)
  local details, bytes = describe_job(field, body, code, attempts, ARGV[8] == '1')
  push(found, details)
  total = total + bytes
  return #found == most or total > 16 * 1024 * 1024
end)
return { on, last and 1 or 0, list_lane_names(), found }
