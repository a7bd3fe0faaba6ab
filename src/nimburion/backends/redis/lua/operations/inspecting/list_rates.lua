-- list_rates: returns all rate limits.
-- Keys: rate_limit spent_until
-- Reply: {now 8, {name, rate limit (see record_format.lua), microseconds until which its units are spent, ...}}
-- Atomic: reads only.
-- Cost: O(rate limits).
local rows, flat = {}, redis.call('HGETALL', rate_limit_key)
for i = 1, #flat, 2 do
  push_pair(rows, flat[i], flat[i + 1])
  push(rows, redis.call('HGET', spent_until_key, flat[i]))
end
return { now8, rows }
