-- get_flow: returns a flow and the groups inside it.
-- Keys: flow flow_order
-- Arguments: ARGV[3] id
-- Reply: {id, record of `flow`, ...}; {}: it is not kept
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(log n) per group, for n flows.
local found, next_parents = {}, { ARGV[3] }
local record = redis.call('HGET', flow_key, ARGV[3])
if record then
  push_pair(found, ARGV[3], record)
end
while record and #next_parents > 0 do
  local parent, groups = table.remove(next_parents), {}
  local first = pack_name(parent)
  for _, member in ipairs(redis.call('ZRANGEBYLEX', flow_order_key, '[' .. first, '(' .. first .. '\255\255')) do
    local id = sub(member, #first + 9)
    push(groups, id)
    push(next_parents, id)
  end
  for i, group in ipairs(get_in_batches(flow_key, groups)) do
    push_pair(found, groups[i], group)
  end
end
return found
