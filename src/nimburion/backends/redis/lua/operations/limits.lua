-- limits: returns all concurrency limits with their holders.
-- Keys: concurrency_limit
-- Reply: four values per limit (see limit_holders.lua)
-- Atomic: reads only.
-- Cost: that of limit_holders.lua.
local limits, flat = {}, redis.call('HGETALL', concurrency_limit_key)
for i = 1, #flat, 2 do
  limits[flat[i]] = flat[i + 1]
end
return describe_limits(limits)
