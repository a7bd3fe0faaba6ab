-- Part of planning: whether a job has room in its limits, and what it takes there (backends/planning/admission.py).
-- Keys: concurrency_limit limit_in_use rate_limit spent_until keyed_limit limit_change limit_key key_opening parked job meta
-- Provides: the own limits of job names: has_rates(), get_rate(name) -> {interval, burst, cost, needed, spent_until}, or nil,
--     spend_units(rate, units), give_units_back(name, taken8), block_rate(rate, delay), write_rates(); get_capacity(name, capacities)
--   count_room(rate) -> how many jobs may start now; find_opening(rate) -> the time from which the next one may start
--   limits by key: get_change(name), apply_change(change, ...), get_keyed_limits(queue, job name), list_limits(lane, body)
--   the uses of keys: read_uses(names), get_use(name), has_parked(name, use), find_full(limits), has_room(limit), is_at_maximum(limit),
--     take_in_limits(limits), take_back(limits), wait_for(limit), refund_limits(field, lane, lease), spend_limits(limits, units),
--     block_limits(limits, delay), write_uses()
--   follow_clock(), before an exchange reads or changes a rate; get_parked_range(name, lane4); pack_names(limits), add_names(names, packed)
--   A key is named by limit NUL key. `limits` is a list of the limits by key of a job (LIMIT_NAME, ...), where the rate has the cost of
--   the job, or is false.
-- Idle: write_rates write_uses
-- Atomic: changes are collected. write_rates and write_uses cannot fail.
-- Cost: two HGET per name that has a rate limit; a few commands per job with limits by key.
-- As in core/rate_limits.py
local MAX_AHEAD, CLOCK_TOLERANCE = 31622400000000, 1000000
-- The name of the limit of a whole queue begins with this (QUEUE_LIMIT in core/keyed_limits.py).
local QUEUE_LIMIT_NAME = 'queue='
-- Positions in the use of a key. Many are made in one exchange, and a table with names takes longer.
local IN_USE, SPENT_UNTIL, OPENS_AT, RECORD, STORED_OPENING, IS_CHANGED, HAS_PARKED = 1, 2, 3, 4, 5, 6, 7
-- Positions in a limit of a job. Its name is that of the key.
local LIMIT_NAME, LIMIT_MAXIMUM, LIMIT_RATE, LIMIT_DECLARED_COST = 1, 2, 3, 4
local UNKNOWN = 'unknown'
local known_rates, any_rate = {}, nil
local known_uses, keyed_limits, any_keyed, any_parked, any_change = {}, {}, nil, nil, nil

-- --- the own limits of job names ---

local function has_rates()
  if any_rate == nil then
    any_rate = redis.call('HLEN', rate_limit_key) > 0
  end
  return any_rate
end

local function get_rate(name)
  if not has_rates() then
    return nil
  end
  local rate = known_rates[name]
  if rate == nil then
    local record = redis.call('HGET', rate_limit_key, name)
    rate = false
    if record then
      local interval, burst, cost = unpack_struct('>I8I4I4', record)
      rate = {
        interval = interval, burst = burst, cost = cost, needed = math.min(cost, burst),
        spent_until = tonumber(redis.call('HGET', spent_until_key, name) or now),
      }
    end
    known_rates[name] = rate
  end
  return rate or nil
end

local function count_room(rate)
  local left = (rate.burst - rate.needed) * rate.interval - math.max(0, rate.spent_until - now)
  return left < 0 and 0 or math.floor(left / (rate.cost * rate.interval)) + 1
end

local function find_opening(rate)
  return rate.spent_until - (rate.burst - rate.needed) * rate.interval
end

local function set_spent_until(rate, time)
  rate.spent_until = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  rate.is_changed = true
end

-- Take units, or give them back if the number is negative.
local function spend_units(rate, units)
  local start = units > 0 and math.max(rate.spent_until, now) or rate.spent_until
  set_spent_until(rate, start + units * rate.interval)
end

-- Give back what a job that has not started took from the rate limit of its name, at the time `taken8`. The part that has become
-- available again by itself since then is not returned.
local function give_units_back(name, taken8)
  local rate = get_rate(name)
  if rate then
    set_spent_until(rate, rate.spent_until - math.max(0, rate.cost * rate.interval - math.max(0, now - decode_time(taken8, 1))))
  end
end

-- Allow no job for `delay` microseconds, and no burst after that.
local function block_rate(rate, delay)
  set_spent_until(rate, math.max(rate.spent_until, now + delay + (rate.burst - rate.needed) * rate.interval))
end

local function write_rates()
  for name, rate in pairs(known_rates) do
    if rate and rate.is_changed then
      redis.call('HSET', spent_until_key, name, string.format('%.0f', rate.spent_until))
    end
  end
end

-- Return how many more jobs of a name its limits allow; nil if it has none.
local function get_capacity(name, capacities)
  if capacities[name] == nil then
    local maximum, rate = redis.call('HGET', concurrency_limit_key, name), get_rate(name)
    local capacity = maximum
      and math.max(0, tonumber(maximum) - tonumber(redis.call('HGET', limit_in_use_key, name) or 0) - get_net_change(name))
    if rate then
      capacity = math.min(capacity or rate.burst, count_room(rate))
    end
    capacities[name] = capacity or false
  end
  return capacities[name] or nil
end

-- --- limits by key ---

local function has_keyed_limits()
  if any_keyed == nil then
    any_keyed = redis.call('HLEN', keyed_limit_key) > 0
  end
  return any_keyed
end

-- Return the queue whose limit has this name, or nil.
local function get_limited_queue(limit)
  return sub(limit, 1, #QUEUE_LIMIT_NAME) == QUEUE_LIMIT_NAME and sub(limit, #QUEUE_LIMIT_NAME + 1) or nil
end

-- Return the limits for the jobs of a queue and name, as open_session.lua stores them: {{limit, maximum or false, interval or false,
-- burst, cost}, ...}. `is_of_queue` is set in a limit of the whole queue; limits of other queues are left out.
local function get_keyed_limits(queue, name)
  if not has_keyed_limits() then
    return nil
  end
  local place = queue .. '\0' .. name
  if keyed_limits[place] == nil then
    local packed, found = redis.call('HGET', keyed_limit_key, name), {}
    for _, limit in ipairs(packed and cmsgpack.unpack(packed) or {}) do
      local limited = get_limited_queue(limit[1])
      if not limited or limited == queue then
        limit.is_of_queue = limited ~= nil
        push(found, limit)
      end
    end
    keyed_limits[place] = #found > 0 and found
  end
  return keyed_limits[place] or nil
end

-- Return the change of a limit, or of one key of it (limit NUL key); nil if there is none.
local function get_change(name)
  if any_change == nil then
    any_change = redis.call('HLEN', limit_change_key) > 0
  end
  local record = any_change and redis.call('HGET', limit_change_key, name)
  return record and cjson.decode(sub(record, 9)) or nil
end

-- Return the parts of a limit with what a change sets. A changed rate keeps the declared cost.
local function apply_change(change, maximum, interval, burst, cost, rate)
  if change then
    maximum = change.concurrency or maximum
    if change.rate then
      cost = interval and cost or 1
      interval, burst, rate = change.rate.interval, change.rate.burst, change.rate.rate
    end
  end
  return maximum, interval, burst, cost, rate
end

-- Return the limits by key in which a job counts. Jobs with the same options share the list.
local function list_limits(lane, body)
  local rules = get_keyed_limits(lane.queue, lane.name)
  if not rules then
    return {}
  end
  local text = ''
  if band(byte(body, JOB_FLAGS), FLAG_OPTIONS) ~= 0 then
    local length, at = unpack_struct('>I4', body, JOB_ID + byte(body, JOB_ID_LENGTH))
    text = sub(body, at, at + length - 1)
  end
  rules.limits_by_options = rules.limits_by_options or {}
  local limits = rules.limits_by_options[text]
  if limits then
    return limits
  end
  limits = {}
  rules.limits_by_options[text] = limits
  local options = text ~= '' and cjson.decode(text) or {}
  local carried = options.limit_keys or {}
  for i = 1, #rules do
    local rule = rules[i]
    local key = rule.is_of_queue and '' or carried[rule[1]]
    if key then
      local rate
      local name = rule[1] .. '\0' .. key
      local maximum, interval, burst, declared = apply_change(get_change(name), rule[2], rule[3], rule[4], rule[5])
      if interval then
        local cost = tonumber(options.cost) or declared
        rate = { interval = interval, burst = burst, cost = cost, needed = math.min(cost, burst) }
      end
      push(limits, { name, maximum, rate or false, declared })
    end
  end
  return limits
end

-- --- uses ---

-- The range of the members of `parked` for a key and, with `lane4`, a lane.
local function get_parked_range(name, lane4)
  if lane4 then
    return '[' .. name .. '\0' .. lane4, '(' .. name .. '\0' .. sub(range_end(lane4), 2)
  end
  return '[' .. name .. '\0', '(' .. name .. '\1'
end

-- Return the use of a key; `record` is its field in `limit_key`, or false.
local function read_use(record)
  local in_use, spent, opens = tonumber(record), 0, nil
  if record and not in_use then
    in_use, spent, opens = string.match(record, '^(%S+) (%S+) (%S+)$')
    in_use, spent, opens = tonumber(in_use), tonumber(spent), tonumber(opens)
  end
  return { in_use or 0, spent, opens or false, record, opens or false, false, UNKNOWN }
end

-- Read the uses of keys that are not known yet, with one command.
local function read_uses(names)
  local unknown, count = {}, 0
  for i = 1, #names do
    if not known_uses[names[i]] then
      count = count + 1
      unknown[count] = names[i]
    end
  end
  local records = get_in_batches(limit_key_key, unknown)
  for i = 1, count do
    known_uses[unknown[i]] = known_uses[unknown[i]] or read_use(records[i])
  end
end

local function get_use(name)
  local use = known_uses[name]
  if not use then
    use = read_use(redis.call('HGET', limit_key_key, name))
    known_uses[name] = use
  end
  return use
end

-- Return whether jobs were parked for a key when the script first asked, or since.
local function has_parked(name, use)
  if any_parked == nil then
    any_parked = redis.call('ZCARD', parked_key) > 0
  end
  if not any_parked then
    return false
  end
  if use[HAS_PARKED] == UNKNOWN then
    local low, high = get_parked_range(name)
    use[HAS_PARKED] = #redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1) > 0
  end
  return use[HAS_PARKED]
end

local function set_key_spent(use, time)
  use[SPENT_UNTIL] = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  use[IS_CHANGED] = true
end

local function is_at_maximum(limit)
  return limit[LIMIT_MAXIMUM] and get_use(limit[LIMIT_NAME])[IN_USE] >= limit[LIMIT_MAXIMUM]
end

-- Return whether a limit has room for one more job.
local function has_room(limit)
  local use, rate = get_use(limit[LIMIT_NAME]), limit[LIMIT_RATE]
  if limit[LIMIT_MAXIMUM] and use[IN_USE] >= limit[LIMIT_MAXIMUM] then
    return false
  end
  if not rate then
    return true
  end
  rate.spent_until = use[SPENT_UNTIL]
  return count_room(rate) > 0
end

-- Return the first of these limits that has no room for one more job, or nil.
local function find_full(limits)
  for i = 1, #limits do
    if not has_room(limits[i]) then
      return limits[i]
    end
  end
end

-- Count a job that is leased in its limits, and set when the next parked job has its turn.
local function take_in_limits(limits)
  for i = 1, #limits do
    local limit = limits[i]
    local use, rate = get_use(limit[LIMIT_NAME]), limit[LIMIT_RATE]
    use[IN_USE], use[IS_CHANGED] = use[IN_USE] + 1, true
    if rate then
      set_key_spent(use, math.max(use[SPENT_UNTIL], now) + rate.cost * rate.interval)
      if has_parked(limit[LIMIT_NAME], use) then
        use[OPENS_AT] = math.max(now, use[SPENT_UNTIL] - (rate.burst - 1) * rate.interval)
      end
    end
  end
end

-- Take back what was counted for a job that does not fit in the reply.
local function take_back(limits)
  for _, limit in ipairs(limits) do
    local use = get_use(limit[LIMIT_NAME])
    use[IN_USE], use[IS_CHANGED] = use[IN_USE] - 1, true
    if limit[LIMIT_RATE] then
      set_key_spent(use, use[SPENT_UNTIL] - limit[LIMIT_RATE].cost * limit[LIMIT_RATE].interval)
    end
  end
end

-- Note that a job is parked for a limit that has no room: when its rate allows one. The end of a lease makes room below its maximum.
local function wait_for(limit)
  local use, rate = get_use(limit[LIMIT_NAME]), limit[LIMIT_RATE]
  if rate and not is_at_maximum(limit) then
    rate.spent_until = use[SPENT_UNTIL]
    local opening = find_opening(rate)
    use[OPENS_AT], use[IS_CHANGED] = math.min(use[OPENS_AT] or opening, opening), true
  end
end

-- Return until when units are spent after the clock was set back from `before` (`follow_clock` in core/rate_limits.py).
-- `full`: the time of a full burst.
local function shorten_wait(spent, before, full)
  return math.min(spent, now + math.max(full, spent - before))
end

-- Let the rates of names and keys follow the clock if it was set back. The time of the latest exchange is stored once in a second.
local function follow_clock()
  if not (has_rates() or has_keyed_limits()) then
    return
  end
  local before = tonumber(redis.call('HGET', meta_key, 'limits_used_at') or 0)
  if math.abs(now - before) <= CLOCK_TOLERANCE then
    return
  end
  redis.call('HSET', meta_key, 'limits_used_at', string.format('%.0f', now))
  if now > before then
    return
  end
  for _, name in ipairs(redis.call('HKEYS', rate_limit_key)) do
    local rate = get_rate(name)
    set_spent_until(rate, shorten_wait(rate.spent_until, before, math.max(rate.burst, rate.cost) * rate.interval))
  end
  local full, declared = {}, redis.call('HGETALL', keyed_limit_key)
  for i = 2, #declared, 2 do
    for _, limit in ipairs(cmsgpack.unpack(declared[i])) do
      if limit[3] then
        full[limit[1]] = math.max(full[limit[1]] or 0, math.max(limit[4], limit[5]) * limit[3])
      end
    end
  end
  local flat = redis.call('HGETALL', limit_key_key)
  for i = 1, #flat, 2 do
    local name, use = flat[i], read_use(flat[i + 1])
    known_uses[name] = use
    if use[SPENT_UNTIL] > now then
      set_key_spent(use, shorten_wait(use[SPENT_UNTIL], before, full[string.match(name, '^%Z*')] or 0))
    end
    if use[OPENS_AT] then
      use[OPENS_AT], use[IS_CHANGED] = math.min(use[OPENS_AT], now), true
    end
  end
end

-- --- ends of leases ---

-- Return the names of the keys of a job as a part of a lease. Jobs that share the list share it.
local function pack_names(limits)
  if not limits.packed then
    local packed = ''
    for i = 1, #limits do
      local name = limits[i][LIMIT_NAME]
      packed = packed .. pack_struct('>I2c0', #name, name)
    end
    limits.packed = packed
  end
  return limits.packed
end

-- Add the names in a part of a lease to a list.
local function add_names(names, packed)
  local at = 1
  while at < #packed do
    names[#names + 1], at = unpack_struct('>I2c0', packed, at)
  end
end

-- Return what a job that has not started took from the rates of the keys for which its lease counts.
local function refund_limits(field, lane, lease)
  if not lease.keys or not has_keyed_limits() then
    return
  end
  local counted, elapsed = {}, math.max(0, now - decode_time(lease.started8, 1))
  local names = {}
  add_names(names, lease.keys)
  for i = 1, #names do
    counted[names[i]] = true
  end
  for _, key in ipairs(list_limits(lane, redis.call('HGET', job_key, field))) do
    local rate = counted[key[LIMIT_NAME]] and key[LIMIT_RATE]
    if rate then
      local use = get_use(key[LIMIT_NAME])
      set_key_spent(use, use[SPENT_UNTIL] - math.max(0, rate.cost * rate.interval - elapsed))
    end
  end
end

-- Take units of the rates of these limits, or give some back if the number is negative.
local function spend_limits(limits, units)
  for _, limit in ipairs(limits) do
    if limit[LIMIT_RATE] then
      local use = get_use(limit[LIMIT_NAME])
      local start = units > 0 and math.max(use[SPENT_UNTIL], now) or use[SPENT_UNTIL]
      set_key_spent(use, start + units * limit[LIMIT_RATE].interval)
    end
  end
end

-- Let the rates of these limits allow no job for `delay` microseconds. Return whether there is a rate.
local function block_limits(limits, delay)
  local found = false
  for _, limit in ipairs(limits) do
    local rate = limit[LIMIT_RATE]
    if rate then
      local use, needed = get_use(limit[LIMIT_NAME]), math.min(limit[LIMIT_DECLARED_COST], rate.burst)
      set_key_spent(use, math.max(use[SPENT_UNTIL], now + delay + (rate.burst - needed) * rate.interval))
      found = true
    end
  end
  return found
end

-- Return the record of a use, or false if none is needed.
local function make_use_record(use)
  local opens = use[OPENS_AT]
  if use[SPENT_UNTIL] ~= 0 or opens then
    return string.format('%d %.0f %s', use[IN_USE], use[SPENT_UNTIL], opens and string.format('%.0f', opens) or '-')
  end
  return use[IN_USE] ~= 0 and tostring(use[IN_USE])
end

-- Write the uses that changed.
local function write_uses()
  local put, dropped, put_opening, dropped_opening = {}, {}, {}, {}
  for name, use in pairs(known_uses) do
    if use[IS_CHANGED] then
      local record, opens = make_use_record(use), use[OPENS_AT]
      if record and record ~= use[RECORD] then
        push_pair(put, name, record)
      elseif not record and use[RECORD] then
        push(dropped, name)
      end
      if opens and opens ~= use[STORED_OPENING] then
        push_pair(put_opening, string.format('%.0f', opens), name)
      elseif use[STORED_OPENING] and not opens then
        push(dropped_opening, name)
      end
      use[RECORD], use[STORED_OPENING], use[IS_CHANGED] = record, opens, false
    end
  end
  call_in_batches('HSET', limit_key_key, put)
  call_in_batches('HDEL', limit_key_key, dropped)
  call_in_batches('ZADD', key_opening_key, put_opening)
  call_in_batches('ZREM', key_opening_key, dropped_opening)
end
