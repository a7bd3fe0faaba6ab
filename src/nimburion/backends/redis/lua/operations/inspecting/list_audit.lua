-- list_audit: returns a page of audit records, newest first.
-- Keys: counters audit
-- Arguments: ARGV[3] maximum number of records, [4] number before which the page begins, or ''
-- Reply: {number to continue before, or '' if no records remain, {record, ...}}
-- Atomic: reads only.
-- Cost: O(records of the page).
local newest = tonumber(redis.call('HGET', counters_key, 'audit') or 0)
return read_numbered_page(audit_key, newest, tonumber(ARGV[3]), tonumber(ARGV[4]))
