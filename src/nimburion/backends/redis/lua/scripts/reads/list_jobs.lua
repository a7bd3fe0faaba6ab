-- list_jobs: returns the next jobs that match a filter.
-- Keys: job
-- Arguments: those of scan_jobs.lua, [8] maximum number of jobs to check, [9] how many bytes of each payload to read
-- Reply: {field to continue after, 1 if no jobs remain, 1 if the page is full or the maximum is checked and a job remains, number of
--   jobs checked, number of seqs passed, {lane number, full name, ...}, {details (see job_details.lua), ...}}
-- Atomic: reads only.
-- Cost: about 500 jobs read per call. It stops at 16 MiB of details.
local MAX_REPLY = 16 * 1024 * 1024
local limit, budget, payload_bytes, found, total, is_full = tonumber(ARGV[6]), tonumber(ARGV[8]), tonumber(ARGV[9]), {}, 0, false
local after, last, checked, passed, stopped = scan_jobs(function(field, body, code, attempts, job_end)
  if #found == limit then
    is_full = true
    return true, true
  end
  local details, bytes = describe_job(field, body, code, attempts, job_end, payload_bytes)
  push(found, details)
  total = total + bytes
  return total > MAX_REPLY
end, budget)
if is_full then
  last, stopped, checked = false, true, checked - 1
end
return { after, last and 1 or 0, stopped and 1 or 0, checked, passed, list_lane_names(), found }
