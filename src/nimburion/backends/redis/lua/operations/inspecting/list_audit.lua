-- list_audit: returns a page of audit records, newest first.
-- Keys: counters audit
-- Arguments: ARGV[3] maximum number of records, [4] number before which the page begins, or ''
-- Reply: {number to continue before, or '' if no records remain, {record, ...}}
-- Atomic: reads only.
-- Cost: O(records of the page).
local limit, before = tonumber(ARGV[3]), tonumber(ARGV[4])
local newest = tonumber(redis.call('HGET', counters_key, 'audit') or 0)
local oldest = newest - redis.call('HLEN', audit_key) + 1
local first = math.min(newest, (before or math.huge) - 1)
local last, numbers = math.max(oldest, first - limit + 1), {}
for number = first, last, -1 do
  push(numbers, number)
end
local has_more = #numbers > 0 and last > oldest
return { has_more and tostring(last) or '', get_in_batches(audit_key, numbers) }
