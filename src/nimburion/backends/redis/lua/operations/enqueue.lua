-- Enqueue: store a slice of up to 500 jobs, idempotent on id.
-- Keys: counters
-- Inputs: ARGV[3] metas, [4] how many lanes, [5...] their full names, then bodies and payloads (see enqueue_jobs.lua)
-- Result: {codes, [place, id of the job that holds the unique key, ...]}
-- Atomic: one script; a server that is full refuses it before it begins
local names, count = {}, tonumber(ARGV[4])
for i = 1, count do
  names[i] = ARGV[4 + i]
end
local codes, holders = enqueue_jobs(names, ARGV[3], 5 + count)
write_lane_counts()
notify_marked()
local details = {}
for place, id in pairs(holders) do
  push_pair(details, place, id)
end
return { table.concat(codes), details }
