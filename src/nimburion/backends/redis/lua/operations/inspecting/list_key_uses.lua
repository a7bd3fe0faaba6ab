-- list_key_uses: returns the keys of limits that are in use or for which jobs wait.
-- Keys: limit_key parked
-- Arguments: ARGV[3] the maximum number of keys
-- Reply: {limit NUL key, use (see record_format.lua), number of parked jobs, ...}, ordered by limit and key
-- Atomic: reads only.
-- Cost: O(keys in use)
local names, uses, rows = {}, {}, {}
local flat = redis.call('HGETALL', limit_key_key)
for i = 1, #flat, 2 do
  push(names, flat[i])
  uses[flat[i]] = flat[i + 1]
end
table.sort(names)
for _, name in ipairs(names) do
  if #rows >= 3 * tonumber(ARGV[3]) then
    break
  end
  local parked = redis.call('ZLEXCOUNT', parked_key, '[' .. name .. '\0', '(' .. name .. '\1')
  if parked > 0 or string.sub(uses[name], 1, 2) ~= '0 ' then
    push_pair(rows, name, uses[name])
    push(rows, parked)
  end
end
return rows
