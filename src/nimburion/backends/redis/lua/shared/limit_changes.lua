-- Shared part: lets what workers declare apply, with the changes of operators.
-- Keys: declared_limit limit_change concurrency_limit rate_limit spent_until keyed_limit limit_key lane_name parked_lane changed_lane
-- Provides: apply_limits(job name), carry_use_over(use, old interval, old burst, new interval, new burst)
--   The caller runs write_uses() afterwards.
-- Atomic: no write can fail.
-- Cost: O(1) per job name. If a rate by key changes: O(keys in use) more. Exchanges return parked jobs: see changed_lane in parked_jobs.lua.

-- Return until when units are spent after a rate replaced another (RateLimit.carry_over in core/rate_limits.py).
local function carry_over(spent, old_interval, old_burst, interval, burst)
  if not old_interval or not interval or spent > now + old_burst * old_interval then
    return spent
  end
  return math.min(spent, now + burst * interval)
end

-- Replace the rate of a key in its use.
local function carry_use_over(use, old_interval, old_burst, interval, burst)
  local spent = carry_over(use[SPENT_UNTIL], old_interval, old_burst, interval, burst)
  if spent ~= use[SPENT_UNTIL] then
    set_key_spent(use, spent)
  end
end

local function set_rate(name, interval, burst, cost, rate)
  if not interval then
    redis.call('HDEL', rate_limit_key, name)
    redis.call('HDEL', spent_until_key, name)
    return
  end
  local old = redis.call('HGET', rate_limit_key, name)
  redis.call('HSET', rate_limit_key, name, pack_struct('>I8I4I4', interval, burst, cost) .. rate)
  if old then
    local old_interval, old_burst = unpack_struct('>I8I4', old)
    local spent = tonumber(redis.call('HGET', spent_until_key, name) or now)
    spent = carry_over(spent, old_interval, old_burst, interval, burst)
    redis.call('HSET', spent_until_key, name, string.format('%.0f', spent))
  else
    redis.call('HSET', spent_until_key, name, '0')
  end
end

-- Let exchanges return the parked jobs of a name to their lanes: its limits changed.
local function mark_changed(name)
  local flat = redis.call('HGETALL', lane_name_key)
  for i = 1, #flat, 2 do
    if string.match(flat[i + 1], '%z(.*)$') == name
      and #redis.call('ZRANGEBYLEX', parked_lane_key, '[' .. flat[i], range_end(flat[i]), 'LIMIT', 0, 1) > 0 then
      redis.call('HSET', changed_lane_key, flat[i], '')
    end
  end
end

-- Carry the rates of the keys of a limit over, except those that have a rate of their own.
local function carry_keys_over(old, limit)
  local flat = redis.call('HGETALL', limit_key_key)
  for i = 1, #flat, 2 do
    local name, record = flat[i], flat[i + 1]
    local change = sub(name, 1, #limit[1] + 1) == limit[1] .. '\0' and (get_change(name) or {})
    if change and not change.rate then
      known_uses[name] = known_uses[name] or read_use(record)
      carry_use_over(known_uses[name], old[3], old[4], limit[3], limit[4])
    end
  end
end

local function set_keyed_limits(name, keyed)
  local packed = #keyed > 0 and cmsgpack.pack(keyed) or false
  local old = redis.call('HGET', keyed_limit_key, name)
  if packed == old then
    return
  end
  if packed then
    redis.call('HSET', keyed_limit_key, name, packed)
  else
    redis.call('HDEL', keyed_limit_key, name)
  end
  for _, before in ipairs(old and cmsgpack.unpack(old) or {}) do
    for _, limit in ipairs(keyed) do
      if limit[1] == before[1] and (limit[3] ~= before[3] or limit[4] ~= before[4]) then
        carry_keys_over(before, limit)
      end
    end
  end
  mark_changed(name)
end

-- Return the names of the limits of queues that are changed. Such a change concerns all job names.
local changed_queues
local function list_changed_queues()
  if not changed_queues then
    changed_queues = {}
    for _, field in ipairs(redis.call('HKEYS', limit_change_key)) do
      if get_limited_queue(field) and not string.find(field, '\0', 1, true) then
        push(changed_queues, field)
      end
    end
  end
  return changed_queues
end

local function apply_limits(name)
  local record = redis.call('HGET', declared_limit_key, name)
  local declared = record and cmsgpack.unpack(record) or { false, false, 0, 0, '', {} }
  local keyed, known, change = {}, {}, get_change(name)
  for i, limit in ipairs(declared[6]) do
    if limit[1] == name then
      change = nil -- it changes the limit by key of this name
    end
    local maximum, interval, burst, cost = apply_change(get_change(limit[1]), limit[2], limit[3], limit[4], limit[5])
    keyed[i], known[limit[1]] = { limit[1], maximum, interval, burst, cost }, true
  end
  for _, limit in ipairs(list_changed_queues()) do
    if not known[limit] then
      local maximum, interval, burst, cost = apply_change(get_change(limit), false, false, 0, 0)
      push(keyed, { limit, maximum, interval, burst, cost })
    end
  end
  table.sort(keyed, function(one, other) return one[1] < other[1] end)
  local maximum, interval, burst, cost, rate = apply_change(change, unpack(declared, 1, 5))
  if maximum then
    redis.call('HSET', concurrency_limit_key, name, maximum)
  else
    redis.call('HDEL', concurrency_limit_key, name)
  end
  set_rate(name, interval, burst, cost, rate)
  set_keyed_limits(name, keyed)
end
