-- find_unfinished: finds the jobs that may be in given unfinished states, if there are few.
-- Keys: ready scheduled parked_lane tenant_job lease attempt_state unmet
-- Arguments: ARGV[3] codes, some of P, S, R, L and W, [4] maximum number of jobs
-- Reply: their fields (8 bytes each) in one string, in no order; nil if there are more than the maximum
-- Atomic: reads only.
-- Cost: O(jobs), at most the maximum.
local codes, limit, total, fields = ARGV[3], tonumber(ARGV[4]), 0, {}

local function has_code(code)
  return string.find(codes, code, 1, true) ~= nil
end

-- Return the seq of a member of each sorted set.
local function get_ready_field(member)
  return string.sub(member, READY_SEQ, READY_SEQ + 7)
end

local function get_turn_field(member)
  return string.sub(member, -8)
end

local function get_scheduled_field(member)
  local _, field = read_scheduled(member)
  return field
end

local hashes, sorted_sets = {}, {}
if has_code(LEASED) then
  push(hashes, lease_key)
end
if has_code(SUSPENDED) then
  push(hashes, unmet_key)
end
if has_code(PENDING) or has_code(SCHEDULED) then
  sorted_sets = {
    [ready_key] = get_ready_field, [parked_lane_key] = get_ready_field, [scheduled_key] = get_scheduled_field,
    [tenant_job_key] = get_turn_field,
  }
elseif has_code(RETRYING) then
  push(hashes, attempt_state_key)
end
for _, key in ipairs(hashes) do
  total = total + redis.call('HLEN', key)
end
for key in pairs(sorted_sets) do
  total = total + redis.call('ZCARD', key)
end
if total > limit then
  return nil
end
for _, key in ipairs(hashes) do
  push(fields, table.concat(redis.call('HKEYS', key)))
end
for key, get_field in pairs(sorted_sets) do
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    push(fields, get_field(member))
  end
end
return table.concat(fields)
