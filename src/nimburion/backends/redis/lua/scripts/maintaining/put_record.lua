-- put_record: adds a record, or replaces it if it has the given version. The oldest ones of its kind beyond a number are deleted.
-- Keys: counters record record_order record_due
-- Arguments: ARGV[3] kind, [4] id, [5] version (0: there is none; '': any), [6] when it is due, or '', [7] body, [8] the number of
--   records to keep, or ''
-- Reply: {'stored', 'conflict' or 'full', the record as it is kept, or the oldest record after 'full'; false: there is none}
-- Atomic: one script.
-- Cost: O(log n) for n records, and O(1) for each record that is deleted.
local kind, id, version, due, body, keep = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local field = get_record_field(kind, id)
local kept = read_record(field)
if version and version ~= (kept and kept.version or 0) then
  return { 'conflict', kept and cmsgpack.pack(kept) }
end
if kept then
  return { 'stored', write_version(field, kept, due, body) }
end

local first, last, surplus = '[' .. kind .. '\0', '(' .. kind .. '\1', {}
local excess = keep and redis.call('ZLEXCOUNT', record_order_key, first, last) + 1 - keep or 0
if excess > 0 then
  surplus = redis.call('ZRANGEBYLEX', record_order_key, first, last, 'LIMIT', 0, excess)
end
local fields = {}
for i, member in ipairs(surplus) do
  fields[i] = get_record_field(kind, string.sub(member, #kind + 10))
  if redis.call('ZSCORE', record_due_key, fields[i]) then
    return { 'full', redis.call('HGET', record_key, fields[i]) }
  end
end
call_in_batches('HDEL', record_key, fields)
call_in_batches('ZREM', record_order_key, surplus)
local position = redis.call('HINCRBY', counters_key, 'record', 1)
redis.call('ZADD', record_order_key, 0, kind .. '\0' .. struct.pack('>I8', position) .. id)
return { 'stored', write_record(field, {
  kind = kind, id = id, position = position, version = now, created_at = now, due = due, changed = 0, held = 0, body = body,
}) }
