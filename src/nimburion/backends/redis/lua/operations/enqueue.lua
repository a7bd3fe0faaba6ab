-- Enqueue: store a slice of up to 500 jobs, idempotent on id.
-- Keys: n
-- Inputs: ARGV[3] metas, [4] how many lanes, [5...] their full names, then bodies and payloads (see enqueue_jobs.lua)
-- Result: {letters, [place, id of the job that holds the unique key, ...]}
-- Atomic: one script; a server that is full refuses it before it begins
local names, count = {}, tonumber(ARGV[4])
for i = 1, count do
  names[i] = ARGV[4 + i]
end
local letters, rivals = store(names, ARGV[3], 5 + count)
count_lanes()
ring()
local told = {}
for place, id in pairs(rivals) do
  push_two(told, place, id)
end
return { table.concat(letters), told }
