-- list_limit_holders: returns the jobs that count against the concurrency limits of job names, among the next leases.
-- Keys: limit_use
-- Arguments: ARGV[3] rank of the first lease, and the job names
-- Reply: {rank to continue from, or nil, {job name, holders, ...}} (see limit_holders.lua)
-- Atomic: reads only.
-- Cost: that of limit_holders.lua.
local names = {}
for i = 4, #ARGV do
  push(names, ARGV[i])
end
local rows, following = find_holders(names, tonumber(ARGV[3]))
return { following or false, rows }
