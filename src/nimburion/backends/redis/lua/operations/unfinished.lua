-- unfinished: finds the jobs that may be in given unfinished states, if there are few.
-- Keys: ready scheduled lease attempt_state
-- Arguments: ARGV[3] codes, some of P, S, R and L, [4] maximum number of jobs
-- Reply: their fields (8 bytes each) in one string, in no order; nil if there are more than the maximum
-- Atomic: reads only.
-- Cost: O(jobs), at most the maximum.
local codes, most, total, fields = ARGV[3], tonumber(ARGV[4]), 0, {}

local function names(some)
  return string.find(codes, some) ~= nil
end

local hashes, lines = {}, {}
if names('L') then
  push(hashes, lease_key)
end
if names('[PS]') then
  lines = { { ready_key, 14 }, { scheduled_key, 9 } }
elseif names('R') then
  push(hashes, attempt_state_key)
end
for _, key in ipairs(hashes) do
  total = total + redis.call('HLEN', key)
end
for _, line in ipairs(lines) do
  total = total + redis.call('ZCARD', line[1])
end
if total > most then
  return nil
end
for _, key in ipairs(hashes) do
  push(fields, table.concat(redis.call('HKEYS', key)))
end
for _, line in ipairs(lines) do
  for _, member in ipairs(redis.call('ZRANGE', line[1], 0, -1)) do
    push(fields, string.sub(member, line[2], line[2] + 7))
  end
end
return table.concat(fields)
