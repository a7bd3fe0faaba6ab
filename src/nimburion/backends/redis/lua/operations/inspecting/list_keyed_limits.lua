-- list_keyed_limits: returns limits by key, and the use of some of their keys.
-- Keys: keyed_limit limit_key parked
-- Arguments: ARGV[3] where to continue: a cursor of `limit_key`; then `-` and the last key with parked jobs
-- Reply: {where to continue, '' at the end, {job name, its limits by key, ...} with the first reply,
--   {limit NUL key, use (see record_format.lua), number of parked jobs, ...}}. A key may come twice.
-- Atomic: reads only.
-- Cost: some 500 keys.
local STEP = 500
local start, limits, rows = ARGV[3], {}, {}

local function count_parked(name)
  return redis.call('ZLEXCOUNT', parked_key, '[' .. name .. '\0', '(' .. name .. '\1')
end

if start == '' then
  limits, start = redis.call('HGETALL', keyed_limit_key), '0'
end
if string.sub(start, 1, 1) ~= '-' then
  local found = redis.call('HSCAN', limit_key_key, start, 'COUNT', STEP)
  for i = 1, #found[2], 2 do
    local name, use = found[2][i], found[2][i + 1]
    local parked = count_parked(name)
    if parked > 0 or string.sub(use, 1, 2) ~= '0 ' then
      push_pair(rows, name, use)
      push(rows, parked)
    end
  end
  return { found[1] == '0' and '-' or found[1], limits, rows }
end
-- Keys that nothing uses, but for which jobs are parked: their maximum is 0.
local low = start == '-' and '-' or '[' .. string.sub(start, 2) .. '\1'
for _ = 1, STEP do
  local first = redis.call('ZRANGEBYLEX', parked_key, low, '+', 'LIMIT', 0, 1)[1]
  if not first then
    return { '', limits, rows }
  end
  local name = string.match(first, '^%Z*%z%Z*')
  if redis.call('HEXISTS', limit_key_key, name) == 0 then
    push_pair(rows, name, '0 0 -')
    push(rows, count_parked(name))
  end
  start, low = '-' .. name, '[' .. name .. '\1'
end
return { start, limits, rows }
