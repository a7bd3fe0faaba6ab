-- Shared part: limits by key. Counts leased jobs for their keys, parks jobs whose key has no room, and returns them to their lanes.
-- Keys: keyed_limit limit_key key_opening lease_key parked parked_lane ready job
-- Provides: for reserve: has_keyed_limits(), get_keyed_limits(job name), list_job_keys(job name, body), find_full_key(keys),
--   park(member, keys, full) -> whether others returned to the lane, count_keys(keys), take_back(keys), put_lease_keys(field, keys)
--   for ends of leases: release_lease_keys(fields), refund_keys(field, job name, taken8), block_keys(keys, delay), spend_key_units(keys, units)
--   unpark(name, lane4), unpark_open(), find_parked(member) -> its key, or nil; get_next_key_opening(), write_key_uses()
--   A key is named by limit NUL key. `keys` is a list of {name, limit, rate}, where the rate has the cost of the job, or is nil.
-- Atomic: a parked job is in `parked` and `parked_lane`, any other due job in `ready`. No write can fail.
-- Cost: a few commands per candidate of a job name that has limits by key; nothing for other jobs.
local known_uses, keyed_limits, any_keyed = {}, {}, nil

local function has_keyed_limits()
  if any_keyed == nil then
    any_keyed = redis.call('HLEN', keyed_limit_key) > 0
  end
  return any_keyed
end

-- Return the limits of a job name, as open_session.lua stores them: {{limit, maximum or false, interval or false, burst, cost}, ...}
local function get_keyed_limits(name)
  if not has_keyed_limits() then
    return nil
  end
  if keyed_limits[name] == nil then
    local packed = redis.call('HGET', keyed_limit_key, name)
    keyed_limits[name] = packed and cmsgpack.unpack(packed) or false
  end
  return keyed_limits[name] or nil
end

-- Return the keys of a job for which its name has limits, by the name of the limit.
local function list_job_keys(job_name, body)
  local limits = get_keyed_limits(job_name)
  if not limits or band(byte(body, JOB_FLAGS), FLAG_OPTIONS) == 0 then
    return {}
  end
  local start = JOB_ID + byte(body, JOB_ID_LENGTH)
  local length, at = unpack_struct('>I4', body, start)
  local options, keys = cjson.decode(sub(body, at, at + length - 1)), {}
  local carried = options.limit_keys
  if not carried then
    return keys
  end
  for _, limit in ipairs(limits) do
    local key = carried[limit[1]]
    if key then
      local rate
      if limit[3] then
        local cost = tonumber(options.cost) or limit[5]
        rate = { interval = limit[3], burst = limit[4], cost = cost, needed = math.min(cost, limit[4]) }
      end
      push(keys, { name = limit[1] .. '\0' .. key, maximum = limit[2], rate = rate, declared_cost = limit[5] })
    end
  end
  return keys
end

local function get_use(name)
  local use = known_uses[name]
  if not use then
    local record = redis.call('HGET', limit_key_key, name)
    local in_use, spent, opens = string.match(record or '0 0 -', '^(%S+) (%S+) (%S+)$')
    use = { in_use = tonumber(in_use), spent_until = tonumber(spent), opens_at = tonumber(opens) }
    known_uses[name] = use
  end
  return use
end

local function set_key_spent(use, time)
  use.spent_until = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  use.is_changed = true
end

-- Return the first of these keys that has no room for the job, or nil.
local function find_full_key(keys)
  for _, key in ipairs(keys) do
    local use = get_use(key.name)
    if key.maximum and use.in_use >= key.maximum then
      return key
    end
    local rate = key.rate
    if rate then
      rate.spent_until = use.spent_until
      if count_room(rate) == 0 then
        local opening = find_opening(rate)
        use.opens_at, use.is_changed = math.min(use.opens_at or opening, opening), true
        return key
      end
    end
  end
end

-- The range of the members of `parked` for a key and, with `lane4`, a lane.
local function get_parked_range(name, lane4)
  if lane4 then
    return '[' .. name .. '\0' .. lane4, '(' .. name .. '\0' .. sub(range_end(lane4), 2)
  end
  return '[' .. name .. '\0', '(' .. name .. '\1'
end

local function has_parked(name)
  local low, high = get_parked_range(name)
  return #redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1) > 0
end

-- Return the first jobs of a lane that are parked for a key to `ready`; return how many.
local function unpark(name, lane4, most)
  local low, high = get_parked_range(name, lane4)
  local members = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, most or 1)
  for _, parked in ipairs(members) do
    local member = sub(parked, #name + 2)
    redis.call('ZREM', parked_key, parked)
    redis.call('ZREM', parked_lane_key, member .. name)
    redis.call('ZADD', ready_key, 0, member)
  end
  if #members > 0 then
    mark_queue(get_lane(lane4).queue)
  end
  return #members
end

-- Return the first job of each lane that is parked for a key to its lane.
local function unpark_all_lanes(name)
  local low, high = get_parked_range(name)
  while true do
    local first = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    local lane4 = sub(first, #name + 2, #name + 5)
    local _, lane_end = get_parked_range(name, lane4)
    low = '[' .. sub(lane_end, 2)
    unpark(name, lane4)
  end
end

-- Return jobs whose rate allows one now to their lanes.
local function unpark_open()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key_opening_key, '-inf', now)) do
    local use = get_use(name)
    use.opens_at, use.is_changed = nil, true
    unpark_all_lanes(name)
  end
end

local function get_next_key_opening()
  local first = redis.call('ZRANGE', key_opening_key, 0, 0, 'WITHSCORES')
  return tonumber(first[2])
end

-- Park a member of `ready`. Its turn at its other keys passes on; return whether any job returned to the lane.
local function park(member, keys, full)
  redis.call('ZREM', ready_key, member)
  redis.call('ZADD', parked_key, 0, full.name .. '\0' .. member)
  redis.call('ZADD', parked_lane_key, 0, member .. full.name)
  local returned = 0
  for _, key in ipairs(keys) do
    if key ~= full then
      returned = returned + unpark(key.name, sub(member, 1, READY_LANE_END))
    end
  end
  return returned > 0
end

-- Return the key for which a member of `ready` is parked, or nil.
local function find_parked(member)
  local found = redis.call('ZRANGEBYLEX', parked_lane_key, '[' .. member, '[' .. member .. '\255', 'LIMIT', 0, 1)[1]
  return found and sub(found, #member + 1)
end

-- Delete a parked member of `ready`; return whether it was parked.
local function drop_parked(member)
  local name = redis.call('ZCARD', parked_lane_key) > 0 and find_parked(member)
  if not name then
    return false
  end
  redis.call('ZREM', parked_key, name .. '\0' .. member)
  redis.call('ZREM', parked_lane_key, member .. name)
  return true
end

-- Let jobs that are parked for the keys of a cancelled job have its turn.
local function pass_turns(body, lane)
  for _, key in ipairs(list_job_keys(lane.name, body)) do
    unpark(key.name, lane.number)
  end
end

-- Count a job for its keys, and set when the next parked job has its turn.
local function count_keys(keys)
  for _, key in ipairs(keys) do
    local use, rate = get_use(key.name), key.rate
    use.in_use, use.is_changed = use.in_use + 1, true
    if rate then
      set_key_spent(use, math.max(use.spent_until, now) + rate.cost * rate.interval)
      if has_parked(key.name) then
        use.opens_at = math.max(now, use.spent_until - (rate.burst - 1) * rate.interval)
      end
    end
  end
end

-- Take back what count_keys counted for a job that does not fit in the reply.
local function take_back(keys)
  for _, key in ipairs(keys) do
    local use = get_use(key.name)
    use.in_use, use.is_changed = use.in_use - 1, true
    if key.rate then
      set_key_spent(use, use.spent_until - key.rate.cost * key.rate.interval)
    end
  end
end

local function put_lease_keys(field, keys)
  local names = {}
  for i, key in ipairs(keys) do
    names[i] = key.name
  end
  redis.call('HSET', lease_key_key, field, cmsgpack.pack(names))
end

-- Stop counting jobs whose leases ended, and let the next parked jobs have their turn.
local function release_lease_keys(fields)
  if #fields == 0 or redis.call('HLEN', lease_key_key) == 0 then
    return
  end
  for i, packed in ipairs(get_in_batches(lease_key_key, fields)) do
    if packed then
      redis.call('HDEL', lease_key_key, fields[i])
      for _, name in ipairs(cmsgpack.unpack(packed)) do
        local use = get_use(name)
        use.in_use, use.is_changed = use.in_use - 1, true
        unpark_all_lanes(name)
      end
    end
  end
end

-- Return what a job that has not started took from the rates of its keys, at the time `taken8`.
local function refund_keys(field, job_name, taken8)
  local packed = has_keyed_limits() and redis.call('HGET', lease_key_key, field)
  if not packed then
    return
  end
  local counted = {}
  for _, name in ipairs(cmsgpack.unpack(packed)) do
    counted[name] = true
  end
  for _, key in ipairs(list_job_keys(job_name, redis.call('HGET', job_key, field))) do
    local rate = counted[key.name] and key.rate
    if rate then
      local use = get_use(key.name)
      set_key_spent(use, use.spent_until - math.max(0, rate.cost * rate.interval - math.max(0, now - decode_time(taken8, 1))))
    end
  end
end

-- Take units of the rates of these keys, or give some back if the number is negative.
local function spend_key_units(keys, units)
  for _, key in ipairs(keys) do
    if key.rate then
      local use = get_use(key.name)
      local start = units > 0 and math.max(use.spent_until, now) or use.spent_until
      set_key_spent(use, start + units * key.rate.interval)
    end
  end
end

-- Let the rates of these keys allow no job for `delay` microseconds. Return whether there is a rate.
local function block_keys(keys, delay)
  local found = false
  for _, key in ipairs(keys) do
    local rate = key.rate
    if rate then
      local use, needed = get_use(key.name), math.min(key.declared_cost, rate.burst)
      set_key_spent(use, math.max(use.spent_until, now + delay + (rate.burst - needed) * rate.interval))
      found = true
    end
  end
  return found
end

local function write_key_uses()
  for name, use in pairs(known_uses) do
    if use.is_changed then
      if use.in_use == 0 and use.spent_until == 0 and not use.opens_at then
        redis.call('HDEL', limit_key_key, name)
      else
        redis.call('HSET', limit_key_key, name, string.format('%d %.0f %s', use.in_use, use.spent_until,
          use.opens_at and string.format('%.0f', use.opens_at) or '-'))
      end
      if use.opens_at then
        redis.call('ZADD', key_opening_key, string.format('%.0f', use.opens_at), name)
      else
        redis.call('ZREM', key_opening_key, name)
      end
      use.is_changed = false
    end
  end
end
