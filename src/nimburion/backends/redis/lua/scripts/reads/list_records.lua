-- list_records: returns a page of the records of one kind, newest first, or those with a due time, earliest first.
-- Keys: record record_order record_due
-- Arguments: ARGV[3] kind, [4] maximum number of records, [5] position before which the page begins, or '', [6] '1': by due time
-- Reply: {now, {record, ...}}
-- Atomic: reads only.
-- Cost: O(records of the page); by due time O(records of all kinds that have one).
local kind, limit, before, fields = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local prefix = kind .. '\0'
if ARGV[6] == '1' then
  for _, field in ipairs(redis.call('ZRANGE', record_due_key, 0, -1)) do
    if #fields < limit and string.sub(field, 1, #prefix) == prefix then
      push(fields, field)
    end
  end
else
  local top = before and prefix .. struct.pack('>I8', before) or kind .. '\1'
  for _, member in ipairs(redis.call('ZREVRANGEBYLEX', record_order_key, '(' .. top, '[' .. prefix, 'LIMIT', 0, limit)) do
    push(fields, prefix .. string.sub(member, #kind + 10))
  end
end
return { now, get_in_batches(record_key, fields) }
