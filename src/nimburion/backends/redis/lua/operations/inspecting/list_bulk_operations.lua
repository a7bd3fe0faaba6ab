-- list_bulk_operations: returns a page of bulk operations, newest first.
-- Keys: counters bulk_operation
-- Arguments: ARGV[3] maximum number of operations, [4] number before which the page begins, or ''
-- Reply: {number to continue before, or '' if none remain, {record, ...}}
-- Atomic: reads only.
-- Cost: O(operations of the page).
local newest = tonumber(redis.call('HGET', counters_key, 'bulk_operation') or 0)
return read_numbered_page(bulk_operation_key, newest, tonumber(ARGV[3]), tonumber(ARGV[4]))
