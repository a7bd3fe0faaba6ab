-- list_limits: returns all concurrency limits with the holders among the next leases.
-- Keys: concurrency_limit
-- Arguments: ARGV[3] rank of the first lease
-- Reply: {rank to continue from, or nil, {four values per limit (see limit_holders.lua)}}
-- Atomic: reads only.
-- Cost: that of limit_holders.lua.
local limits, flat = {}, redis.call('HGETALL', concurrency_limit_key)
for i = 1, #flat, 2 do
  limits[flat[i]] = flat[i + 1]
end
local rows, following = describe_limits(limits, tonumber(ARGV[3]))
return { following or false, rows }
