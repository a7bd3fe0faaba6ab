-- Shared part of limits and explain: the jobs that count against concurrency limits.
-- Keys: session_leases lease job limit_in_use
-- Provides: describe_limits({job name: limit}) -> four values per limit: name, limit, jobs in use, {start 8, id, session (see
--   session_names.lua), ...} of the 20 jobs that have counted longest, in no order
-- Cost: O(leases), as far as all holders are found, and at most 10,000 leases: about 10 ms. With more leases, some holders may be
--   missing; the number in use is exact.
local MAX_HOLDERS, MAX_LEASES = 20, 10000

local function is_older(one, other)
  if one.started ~= other.started then
    return one.started < other.started
  end
  return one.field < other.field
end

-- Return the leases of each of these names. `missing` is their number.
local function find_leases(limits, missing)
  local found = {}
  for name in pairs(limits) do
    found[name] = {}
  end
  for first = 0, MAX_LEASES - 1, 500 do
    local members, fields = missing > 0 and redis.call('ZRANGE', session_leases_key, first, first + 499) or {}, {}
    for i, member in ipairs(members) do
      fields[i] = sub(member, 5)
    end
    for i, record in ipairs(get_in_batches(lease_key, fields)) do
      local holders = found[get_lane(sub(record, LEASE_LANE, LEASE_LANE_END)).name]
      if holders then
        missing = missing - 1
        local lease = read_lease(record)
        push(holders, { field = fields[i], started = decode_time(lease.started8, 1), lease = lease })
      end
    end
    if #members < 500 then
      break
    end
  end
  return found
end

local function describe_limits(limits)
  local rows, counts, total = {}, {}, 0
  for name in pairs(limits) do
    counts[name] = redis.call('HGET', limit_in_use_key, name) or '0'
    total = total + tonumber(counts[name])
  end
  for name, holders in pairs(find_leases(limits, total)) do
    table.sort(holders, is_older)
    local described = {}
    for i = 1, math.min(#holders, MAX_HOLDERS) do
      local holder = holders[i]
      push_pair(described, holder.lease.started8, get_id(redis.call('HGET', job_key, holder.field)))
      push(described, find_session(holder.lease.session4))
    end
    push_pair(rows, name, limits[name])
    push_pair(rows, counts[name], described)
  end
  return rows
end
