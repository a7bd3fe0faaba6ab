-- Shared part of list_limit_holders and explain_job: the jobs that count against the concurrency limits of job names.
-- Keys: session_leases lease job limit_use
-- Provides: find_holders(job names, first) -> {job name, {start 8, id, session (see session_names.lua), ...} of the 20 jobs that have
--   counted longest, ...}; and the rank to continue from, or nil. `first` is the rank, in `session_leases`, of the first lease to look at.
-- Cost: O(leases), as far as all holders are found, and at most 2,000 leases: about 3 ms.
local MAX_HOLDERS, MAX_LEASES = 20, 2000

local function is_older(one, other)
  if one.started ~= other.started then
    return one.started < other.started
  end
  return one.field < other.field
end

-- Return the leases of each of these names, and the rank to continue from, or nil. `missing` is their number.
local function find_leases(names, missing, start)
  local found, following = {}, start + MAX_LEASES
  for _, name in ipairs(names) do
    found[name] = {}
  end
  for first = start, start + MAX_LEASES - 1, 500 do
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
      following = nil
      break
    end
  end
  return found, following
end

local function find_holders(names, first)
  local rows, total = {}, 0
  for _, name in ipairs(names) do
    total = total + tonumber(string.match(redis.call('HGET', limit_use_key, 'job:' .. name .. '\0') or '0', '^%d+'))
  end
  local found, following = find_leases(names, total, first)
  for name, holders in pairs(found) do
    table.sort(holders, is_older)
    local described = {}
    for i = 1, math.min(#holders, MAX_HOLDERS) do
      local holder = holders[i]
      push_pair(described, holder.lease.started8, get_id(redis.call('HGET', job_key, holder.field)))
      push(described, find_session(holder.lease.session4))
    end
    push_pair(rows, name, described)
  end
  return rows, following
end
