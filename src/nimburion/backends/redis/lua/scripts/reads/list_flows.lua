-- list_flows: returns a page of the flows that are no groups, most recently stored first.
-- Keys: flow flow_order running_flow
-- Arguments: ARGV[3] maximum number of flows, [4] position before which the page begins, or '', [5] '1': only those that run
-- Reply: {id, record of `flow`, ...}
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(log n) per flow, for n flows.
local key, first = flow_order_key, pack_name('')
if ARGV[5] == '1' then
  key, first = running_flow_key, ''
end
local high = ARGV[4] == '' and '(' .. first .. '\255' or '(' .. first .. pack_struct('>I8', tonumber(ARGV[4]))
local ids, rows = {}, {}
for i, member in ipairs(redis.call('ZREVRANGEBYLEX', key, high, '[' .. first, 'LIMIT', 0, tonumber(ARGV[3]))) do
  ids[i] = sub(member, #first + 9)
end
for i, record in ipairs(get_in_batches(flow_key, ids)) do
  push_pair(rows, ids[i], record)
end
return rows
