-- enqueue: stores a batch of up to 500 jobs. It is idempotent by id.
-- Keys: counters
-- Arguments: ARGV[3] positions, [4] number of lanes, [5...] full lane names, then bodies and large payloads (see enqueue_jobs.lua)
-- Reply: {codes, {index, id of the job that holds the unique key, ...}}
-- Atomic: one script. A full server rejects it before it begins.
-- Cost: O(log n) per job, for n waiting jobs.
local positions, count, names = ARGV[3], tonumber(ARGV[4]), {}
for i = 1, count do
  names[i] = ARGV[4 + i]
end
local codes, holders = enqueue_jobs(names, positions, 5 + count)
write_lane_counts()
notify_marked()
local details = {}
for index, id in pairs(holders) do
  push_pair(details, index, id)
end
return { table.concat(codes), details }
