-- list_tenants: returns the tenants with waiting or running jobs, and the weights that were set.
-- Keys: tenant_share tenant_job tenant_weight
-- Arguments: ARGV[3] the maximum number of tenants
-- Reply: {{tenant, queue, rank, weight, waiting jobs, running jobs, microseconds ahead of the minimum, ...}, {tenant, weight, ...}}. The
--   tenants are ordered by queue, rank and virtual time, then by the bytes of the tenant. Weights are in hundredths.
-- Atomic: reads only.
-- Cost: O(n) for n tenants that are known: about 2 ms for 1,000. O(log m) per tenant in the reply, for m waiting jobs.
local MAX_WAITING_COUNTED = 10000
local LIMIT = tonumber(ARGV[3])
local first, rows = {}, {}

local function compare_bytes(one, other)
  for i = 1, math.min(#one, #other) do
    if byte(one, i) ~= byte(other, i) then
      return byte(one, i) < byte(other, i)
    end
  end
  return #one < #other
end

local function is_listed_before(one, other)
  if one.queue ~= other.queue then
    return compare_bytes(one.queue, other.queue)
  elseif one.rank ~= other.rank then
    return one.rank < other.rank
  elseif one.time ~= other.time then
    return one.time < other.time
  end
  return compare_bytes(one.tenant, other.tenant)
end

local function is_listed_after(one, other)
  return is_listed_before(other, one)
end

-- Keep the first LIMIT tenants, in a heap with the last of them at its top.
local function note_tenant(found)
  if #first < LIMIT then
    push(first, found)
    if #first == LIMIT then
      for at = math.floor(LIMIT / 2), 1, -1 do
        sift_down(first, at, LIMIT, is_listed_after)
      end
    end
  elseif LIMIT > 0 and is_listed_before(found, first[1]) then
    first[1] = found
    sift_down(first, 1, LIMIT, is_listed_after)
  end
end

local flat = redis.call('HGETALL', tenant_share_key)
for i = 1, #flat, 2 do
  local field, record = flat[i], flat[i + 1]
  local time, _, _, leased = unpack_struct('>I8I8BI4', record)
  if leased > 0 or #record > SHARE_HEAD_SIZE then
    local queue = string.match(field, '^%Z*')
    note_tenant({
      queue = queue, rank = byte(field, #queue + 2), time = time, tenant = sub(field, #queue + 3), leased = leased, record = record,
    })
  end
end
table.sort(first, is_listed_before)
for _, found in ipairs(first) do
  local class, waiting = get_class(found.queue, string.char(found.rank)), 0
  for _, group in pairs(get_groups(read_share(class, found.tenant, found.record))) do
    waiting = waiting + redis.call('ZLEXCOUNT', tenant_job_key, get_range_after(group, ''))
  end
  push_pair(rows, found.tenant, found.queue)
  push_pair(rows, found.rank, get_weight(found.tenant))
  push_pair(rows, math.min(waiting, MAX_WAITING_COUNTED), found.leased)
  push(rows, math.max(0, found.time - class.min_virtual_time))
end
return { rows, redis.call('HGETALL', tenant_weight_key) }
