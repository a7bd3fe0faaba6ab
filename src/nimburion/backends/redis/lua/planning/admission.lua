-- Part of planning: whether a job has room in its limits, and what it takes there (backends/planning/admission.py).
--
-- The limits of a job name (job:NAME) and of a queue (queue:NAME) close lanes when they have no room. Any other limit parks the job that
-- has no room.
-- Keys: limit limit_change limit_use limit_opening parked job meta
-- Provides: the limits: get_change(name), apply_change(change, ...), closes_lane(name), get_job_limit_name(job name),
--     get_limited_job(name), get_limited_queue(name), concerns_lane(name, queue, job name);
--     list_lane_limits(queue, job name): those that close a lane; list_limits(lane, body): those for which a job may be parked;
--     may_park(job name)
--   their uses: read_uses(names), get_use(name), has_parked(name, use), find_full(limits), has_room(limit), is_at_maximum(limit),
--     count_room(rate) -> how many jobs may start now, find_opening(rate) -> the time from which the next one may start,
--     count_lane_room(lane, most), take_in_limits(limits), take_in_lane(lane, number), take_back(limits), wait_for(limit)
--   when leases begin and end: count_leased(), refund_limits(field, lane, lease), spend_limits(limits, units),
--     block_rates(lane, body, delay), pack_names(limits), add_names(names, packed)
--   follow_clock(), before an exchange reads or changes a rate; get_parked_range(name, lane4); write_uses()
--   A key is named by limit NUL key; the only key of a limit of a job name or a queue is ''. `limits` is a list of {LIMIT_NAME, ...},
--   where the rate has the cost of the job, or is false.
-- Idle: write_uses
-- Atomic: changes are collected, and write_uses cannot fail.
-- Cost: two commands per job name with limits; a few commands per job that may be parked.
-- As in core/rate_limits.py
local MAX_AHEAD, CLOCK_TOLERANCE = 31622400000000, 1000000
-- The names of the limits of job names and of queues begin with these, as in core/limits.py.
local JOB_LIMIT, QUEUE_LIMIT = 'job:', 'queue:'
-- Positions in the use of a key. Many are made in one exchange, and a table with names takes longer.
local IN_USE, SPENT_UNTIL, OPENS_AT, RECORD, STORED_OPENING, IS_CHANGED, HAS_PARKED = 1, 2, 3, 4, 5, 6, 7
-- Positions in a limit of a job. Its name is that of the key.
local LIMIT_NAME, LIMIT_MAXIMUM, LIMIT_RATE, LIMIT_DECLARED_COST = 1, 2, 3, 4
local UNKNOWN = 'unknown'
local known_rules, parking_rules, lane_limits, closing_maxima = {}, {}, {}, {}
local known_uses, any_limit, any_parked, any_change = {}, nil, nil, nil

-- --- limits ---

local function has_limits()
  if any_limit == nil then
    any_limit = redis.call('HLEN', limit_key) > 0
  end
  return any_limit
end

local function get_job_limit_name(job)
  return JOB_LIMIT .. job
end

-- Return the job name whose limit has this name, or nil.
local function get_limited_job(limit)
  return sub(limit, 1, #JOB_LIMIT) == JOB_LIMIT and sub(limit, #JOB_LIMIT + 1) or nil
end

-- Return the queue whose limit has this name, or nil.
local function get_limited_queue(limit)
  return sub(limit, 1, #QUEUE_LIMIT) == QUEUE_LIMIT and sub(limit, #QUEUE_LIMIT + 1) or nil
end

local function closes_lane(limit)
  return get_limited_job(limit) ~= nil or get_limited_queue(limit) ~= nil
end

-- Return whether a limit that a job name has closes the lane of the name in a queue.
local function concerns_lane(limit, queue, job)
  return get_limited_job(limit) == job or get_limited_queue(limit) == queue
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

-- Return the limits of a job name, as limit_changes.lua stores them: {{limit, maximum or false, interval or false, burst, cost, rate}, ...}.
local function get_rules(name)
  local rules = known_rules[name]
  if not rules then
    local packed = has_limits() and redis.call('HGET', limit_key, name)
    rules = packed and cmsgpack.unpack(packed) or {}
    known_rules[name] = rules
  end
  return rules
end

local function make_limit(name, maximum, interval, burst, declared, cost)
  cost = cost or declared
  local rate = interval and { interval = interval, burst = burst, cost = cost, needed = math.min(cost, burst) }
  return { name, maximum, rate or false, declared }
end

-- Return the limits in which all jobs of a lane count.
local function list_lane_limits(queue, job)
  local place = queue .. '\0' .. job
  local limits = lane_limits[place]
  if not limits then
    limits = {}
    lane_limits[place] = limits
    for _, rule in ipairs(get_rules(job)) do
      if concerns_lane(rule[1], queue, job) then
        local limit = make_limit(rule[1] .. '\0', unpack(rule, 2, 5))
        push(limits, limit)
        if limit[LIMIT_MAXIMUM] then
          local name = limit[LIMIT_NAME]
          closing_maxima[name] = closing_maxima[name] or {}
          closing_maxima[name][limit[LIMIT_MAXIMUM]] = true
        end
      end
    end
  end
  return limits
end

-- Return the rules of the limits for which jobs of a name may be parked.
local function list_parking_rules(name)
  local found = parking_rules[name]
  if not found then
    found = {}
    parking_rules[name] = found
    for _, rule in ipairs(get_rules(name)) do
      if not closes_lane(rule[1]) then
        push(found, rule)
      end
    end
  end
  return found
end

local function may_park(name)
  return #list_parking_rules(name) > 0
end

-- Return the limits in which a job counts and for which it may be parked. Jobs with the same options share the list.
local function list_limits(lane, body)
  local rules = list_parking_rules(lane.name)
  if #rules == 0 then
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
    local key = carried[rule[1]]
    if key then
      local name = rule[1] .. '\0' .. key
      local maximum, interval, burst, declared = apply_change(get_change(name), rule[2], rule[3], rule[4], rule[5])
      push(limits, make_limit(name, maximum, interval, burst, declared, tonumber(options.cost)))
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
  local records = get_in_batches(limit_use_key, unknown)
  for i = 1, count do
    known_uses[unknown[i]] = known_uses[unknown[i]] or read_use(records[i])
  end
end

local function get_use(name)
  local use = known_uses[name]
  if not use then
    use = read_use(redis.call('HGET', limit_use_key, name))
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

local function set_spent(use, time)
  use[SPENT_UNTIL] = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  use[IS_CHANGED] = true
end

local function count_room(rate)
  local left = (rate.burst - rate.needed) * rate.interval - math.max(0, rate.spent_until - now)
  return left < 0 and 0 or math.floor(left / (rate.cost * rate.interval)) + 1
end

local function find_opening(rate)
  return rate.spent_until - (rate.burst - rate.needed) * rate.interval
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
      set_spent(use, math.max(use[SPENT_UNTIL], now) + rate.cost * rate.interval)
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
      set_spent(use, use[SPENT_UNTIL] - limit[LIMIT_RATE].cost * limit[LIMIT_RATE].interval)
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

-- Return how many jobs of a lane its limits allow, at most `most`.
local function count_lane_room(lane, most)
  for _, limit in ipairs(lane.limits) do
    local use, rate = get_use(limit[LIMIT_NAME]), limit[LIMIT_RATE]
    if limit[LIMIT_MAXIMUM] then
      most = math.min(most, math.max(0, limit[LIMIT_MAXIMUM] - use[IN_USE]))
    end
    if rate then
      rate.spent_until = use[SPENT_UNTIL]
      most = math.min(most, count_room(rate))
    end
  end
  return most
end

-- Count jobs of a lane that are leased in its limits; if the number is negative, take that back.
local function take_in_lane(lane, number)
  local known = get_lane(lane.number)
  known.counted = known.counted + number
  for _, limit in ipairs(lane.limits) do
    local use, rate = get_use(limit[LIMIT_NAME]), limit[LIMIT_RATE]
    use[IN_USE], use[IS_CHANGED] = use[IN_USE] + number, true
    if rate and number ~= 0 then
      local start = number > 0 and math.max(use[SPENT_UNTIL], now) or use[SPENT_UNTIL]
      set_spent(use, start + number * rate.cost * rate.interval)
    end
  end
end

-- Return until when units are spent after the clock was set back from `before` (`follow_clock` in core/rate_limits.py).
-- `full`: the time of a full burst.
local function shorten_wait(spent, before, full)
  return math.min(spent, now + math.max(full, spent - before))
end

-- Let the rates follow the clock if it was set back. The time of the latest exchange is stored once in a second.
local function follow_clock()
  if not has_limits() then
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
  local full, packed = {}, redis.call('HGETALL', limit_key)
  for i = 2, #packed, 2 do
    for _, rule in ipairs(cmsgpack.unpack(packed[i])) do
      if rule[3] then
        full[rule[1]] = math.max(full[rule[1]] or 0, math.max(rule[4], rule[5]) * rule[3])
      end
    end
  end
  local flat = redis.call('HGETALL', limit_use_key)
  for i = 1, #flat, 2 do
    local name, use = flat[i], read_use(flat[i + 1])
    known_uses[name] = use
    if use[SPENT_UNTIL] > now then
      set_spent(use, shorten_wait(use[SPENT_UNTIL], before, full[string.match(name, '^%Z*')] or 0))
    end
    if use[OPENS_AT] then
      use[OPENS_AT], use[IS_CHANGED] = math.min(use[OPENS_AT], now), true
    end
  end
end

-- --- when leases begin and end ---

-- Count the leases that began or ended since the last call in the limits of their lanes.
local function count_leased()
  for _, lane in pairs(known_lanes) do
    local by = lane[LEASED] - lane.counted
    if by ~= 0 then
      lane.counted = lane[LEASED]
      for _, limit in ipairs(list_lane_limits(lane.queue, lane.name)) do
        local use = get_use(limit[LIMIT_NAME])
        use[IN_USE], use[IS_CHANGED] = use[IN_USE] + by, true
      end
    end
  end
end

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

-- Return what a job that has not started took from the rates of its limits. The part that has become available again by itself since
-- then is not returned.
local function refund_limits(field, lane, lease)
  local elapsed = math.max(0, now - decode_time(lease.started8, 1))

  local function refund(limit)
    local rate = limit[LIMIT_RATE]
    if rate then
      local use = get_use(limit[LIMIT_NAME])
      set_spent(use, use[SPENT_UNTIL] - math.max(0, rate.cost * rate.interval - elapsed))
    end
  end

  for _, limit in ipairs(list_lane_limits(lane.queue, lane.name)) do
    refund(limit)
  end
  if not lease.keys or not may_park(lane.name) then
    return
  end
  local names, counted = {}, {}
  add_names(names, lease.keys)
  for i = 1, #names do
    counted[names[i]] = true
  end
  for _, limit in ipairs(list_limits(lane, redis.call('HGET', job_key, field))) do
    if counted[limit[LIMIT_NAME]] then
      refund(limit)
    end
  end
end

-- Take units of the rates of these limits, or give some back if the number is negative.
local function spend_limits(limits, units)
  for _, limit in ipairs(limits) do
    if limit[LIMIT_RATE] then
      local use = get_use(limit[LIMIT_NAME])
      local start = units > 0 and math.max(use[SPENT_UNTIL], now) or use[SPENT_UNTIL]
      set_spent(use, start + units * limit[LIMIT_RATE].interval)
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
      set_spent(use, math.max(use[SPENT_UNTIL], now + delay + (rate.burst - needed) * rate.interval))
      found = true
    end
  end
  return found
end

-- Let the rates of the keys of a job, or that of its name, allow no job for `delay` microseconds. Return whether there is a rate.
local function block_rates(lane, body, delay)
  local found, own = block_limits(list_limits(lane, body), delay), {}
  for _, limit in ipairs(list_lane_limits(lane.queue, lane.name)) do
    if get_limited_job(limit[LIMIT_NAME]) then
      push(own, limit)
    else
      found = block_limits({ limit }, delay) or found
    end
  end
  return found or block_limits(own, delay)
end

-- Return the record of a use, or false if none is needed.
local function make_use_record(use)
  local opens = use[OPENS_AT]
  if use[SPENT_UNTIL] ~= 0 or opens then
    return string.format('%d %.0f %s', use[IN_USE], use[SPENT_UNTIL], opens and string.format('%.0f', opens) or '-')
  end
  return use[IN_USE] ~= 0 and tostring(use[IN_USE])
end

-- Wake workers for the places that a limit has now, if it was full before. `name` is the name of its key.
local function mark_opened(name, maxima, in_use, before)
  local room = 0
  for maximum in pairs(maxima) do
    if in_use < maximum and before >= maximum then
      room = math.max(room, maximum - in_use)
    end
  end
  if room > 0 then
    local limit = sub(name, 1, -2)
    local job = get_limited_job(limit)
    if job then
      mark_job_name(job, room)
    else
      mark_queue(get_limited_queue(limit), room)
    end
  end
end

-- Write the uses that changed. If a full limit that closes lanes has room again, wake as many workers as it has places.
local function write_uses()
  local put, dropped, put_opening, dropped_opening = {}, {}, {}, {}
  for name, use in pairs(known_uses) do
    if use[IS_CHANGED] then
      local record, opens, maxima = make_use_record(use), use[OPENS_AT], closing_maxima[name]
      if maxima then
        mark_opened(name, maxima, use[IN_USE], tonumber(string.match(use[RECORD] or '0', '^%d+')))
      end
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
  call_in_batches('HSET', limit_use_key, put)
  call_in_batches('HDEL', limit_use_key, dropped)
  call_in_batches('ZADD', limit_opening_key, put_opening)
  call_in_batches('ZREM', limit_opening_key, dropped_opening)
end
