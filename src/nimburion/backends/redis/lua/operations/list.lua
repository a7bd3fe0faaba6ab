-- list: returns the next jobs that match a filter.
-- Keys: job
-- Arguments: those of scan_jobs.lua, and ARGV[8] '1' to include payloads
-- Reply: {field to continue after, 1 if no jobs remain, {lane number, full name, ...}, {details (see job_details.lua), ...}}
-- Atomic: reads only.
-- Cost: about 500 jobs read per call. It stops at 16 MiB of details.
local MAX_REPLY = 16 * 1024 * 1024
local limit, found, total = tonumber(ARGV[6]), {}, 0
local after, last = scan_jobs(function(field, body, code, attempts)
  local details, bytes = describe_job(field, body, code, attempts, ARGV[8] == '1')
  push(found, details)
  total = total + bytes
  return #found == limit or total > MAX_REPLY
end)
return { after, last and 1 or 0, list_lane_names(), found }
