-- delete_record: deletes a record.
-- Keys: record record_order record_due
-- Arguments: ARGV[3] kind, [4] id
-- Reply: 1 if the record existed, else 0
-- Atomic: one script.
-- Cost: O(log n) for n records.
local kind, id = ARGV[3], ARGV[4]
local field = get_record_field(kind, id)
local record = read_record(field)
if not record then
  return 0
end
redis.call('ZREM', record_due_key, field)
redis.call('ZREM', record_order_key, kind .. '\0' .. struct.pack('>I8', record.position) .. id)
return redis.call('HDEL', record_key, field)
