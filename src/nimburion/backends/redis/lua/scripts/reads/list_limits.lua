-- list_limits: returns the limits, their changes, and the use of some of their keys.
-- Keys: limit limit_change limit_use parked
-- Arguments: ARGV[3] where to continue: a cursor of `limit_use`; then `-` and the last key with parked jobs
-- Reply: {now 8, where to continue, '' at the end, {job name, its limits, ...} and {change, ...} with the first reply,
--   {limit NUL key, use, number of parked jobs, ...}} (see record_format.lua). A key may come twice.
-- Atomic: reads only.
-- Cost: some 500 keys.
local STEP = 500
local start, limits, changes, rows = ARGV[3], {}, {}, {}

local function count_parked(name)
  return redis.call('ZLEXCOUNT', parked_key, '[' .. name .. '\0', '(' .. name .. '\1')
end

if start == '' then
  local flat = redis.call('HGETALL', limit_change_key)
  for i = 2, #flat, 2 do
    push(changes, flat[i])
  end
  limits, start = redis.call('HGETALL', limit_key), '0'
end
if string.sub(start, 1, 1) ~= '-' then
  local found = redis.call('HSCAN', limit_use_key, start, 'COUNT', STEP)
  for i = 1, #found[2], 2 do
    local name, use = found[2][i], found[2][i + 1]
    push_pair(rows, name, use)
    push(rows, count_parked(name))
  end
  return { now8, found[1] == '0' and '-' or found[1], limits, changes, rows }
end
-- Keys that nothing uses, but for which jobs are parked: their maximum is 0.
local low = start == '-' and '-' or '[' .. string.sub(start, 2) .. '\1'
for _ = 1, STEP do
  local first = redis.call('ZRANGEBYLEX', parked_key, low, '+', 'LIMIT', 0, 1)[1]
  if not first then
    return { now8, '', limits, changes, rows }
  end
  local name = string.match(first, '^%Z*%z%Z*')
  if redis.call('HEXISTS', limit_use_key, name) == 0 then
    push_pair(rows, name, '0')
    push(rows, count_parked(name))
  end
  start, low = '-' .. name, '[' .. name .. '\1'
end
return { now8, start, limits, changes, rows }
