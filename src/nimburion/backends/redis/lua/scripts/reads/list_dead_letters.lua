-- list_dead_letters: returns what groups the next dead letters that match a filter.
-- Keys: job
-- Arguments: those of scan_jobs.lua, [8] maximum number of jobs to check
-- Reply: {field to continue after, 1 if no jobs remain, 1 if the maximum is checked and a job remains, number of jobs checked,
--   {id, job name, end 8, fingerprint, ...}}
-- Atomic: reads only.
-- Cost: about 500 jobs read per call. It reads no history.
local rows = {}
local after, last, checked, _, stopped = scan_jobs(function(_, body, _, _, job_end)
  push_pair(rows, get_id(body), get_lane(get_lane_number(body)).name)
  push_pair(rows, job_end.finished8, job_end.fingerprint)
end, tonumber(ARGV[8]))
return { after, last and 1 or 0, stopped and 1 or 0, checked, rows }
