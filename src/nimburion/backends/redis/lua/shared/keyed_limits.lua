-- Shared part: limits by key. Counts leased jobs for their keys, parks jobs whose key has no room, and returns them to their lanes.
-- Keys: keyed_limit limit_change limit_key key_opening parked parked_lane changed_lane ready job rate_limit meta
-- Provides: for reserve: has_keyed_limits(), get_keyed_limits(queue, job name), list_job_keys(lane, body), find_full_key(keys),
--   is_at_maximum(key), is_full(key), note_opening(key), has_parked(name, use), park(member, key, group of a tenant or nil), count_keys(keys), take_back(keys), pack_names(keys)
--   get_parked_range(name, lane4), collect_parked(name, waiting), collect_returned(name, waiting) -> group or nil, collect_moved(name, other key, waiting), write_returned(), write_parked()
--   for ends of leases: release_keys(parts of leases), refund_keys(field, lane, lease), block_keys(keys, delay), spend_key_units(keys, units)
--   read_uses(names of keys) reads many with one command
--   for the exchange: follow_clock(), before it reads or changes a rate
--   unpark(name, lane4), unpark_open(), unpark_changed() -> first job that still returns by lane, let_return(name, most), find_parked(member) -> its key, or nil; get_next_key_opening(), write_key_uses()
--   A key is named by limit NUL key. `keys` is a list of the keys of a job
--   (KEY_NAME, ...), where the rate has the cost of the job, or is false.
-- Idle: write_key_uses write_parked
-- Atomic: a parked job is in `parked` and `parked_lane`, any other due job in `ready`. No write can fail.
-- Cost: a few commands per candidate of a job name that has limits by key; nothing for other jobs.
-- The most keys whose parked jobs one exchange returns because their rates allow one.
local MAX_OPENED = 500
-- As in core/keyed_limits.py
local MAX_RETURNED = 1000
-- The most openings that are passed over because no job waits for them.
local MAX_CHECKED = 100
-- As in core/rate_limits.py
local CLOCK_TOLERANCE = 1000000
-- Positions in the use of a key. Many are made in one exchange, and a table with names takes longer.
local IN_USE, SPENT_UNTIL, OPENS_AT, RECORD, STORED_OPENING, IS_CHANGED, HAS_PARKED = 1, 2, 3, 4, 5, 6, 7
-- Positions in a key of a job. RATE: nil, or as in rate_limits.lua.
local KEY_NAME, KEY_MAXIMUM, KEY_RATE, KEY_DECLARED_COST = 1, 2, 3, 4
local UNKNOWN = 'unknown'
-- The name of the limit of a whole queue begins with this (QUEUE_LIMIT in core/keyed_limits.py).
local QUEUE_LIMIT_NAME = 'queue='
local known_uses, keyed_limits, any_keyed, any_parked, any_change = {}, {}, nil, nil, nil
local to_park, to_return = { ready = {}, parked = {}, parked_lane = {} }, { ready = {}, parked = {}, parked_lane = {} }

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

-- Return the keys of a job for which its name has limits. Jobs with the same options share the list.
local function list_job_keys(lane, body)
  local limits = get_keyed_limits(lane.queue, lane.name)
  if not limits then
    return {}
  end
  local text = ''
  if band(byte(body, JOB_FLAGS), FLAG_OPTIONS) ~= 0 then
    local length, at = unpack_struct('>I4', body, JOB_ID + byte(body, JOB_ID_LENGTH))
    text = sub(body, at, at + length - 1)
  end
  limits.keys_by_options = limits.keys_by_options or {}
  local keys = limits.keys_by_options[text]
  if keys then
    return keys
  end
  keys = {}
  limits.keys_by_options[text] = keys
  local options = text ~= '' and cjson.decode(text) or {}
  local carried = options.limit_keys or {}
  for i = 1, #limits do
    local limit = limits[i]
    local key = limit.is_of_queue and '' or carried[limit[1]]
    if key then
      local rate
      local name = limit[1] .. '\0' .. key
      local maximum, interval, burst, declared = apply_change(get_change(name), limit[2], limit[3], limit[4], limit[5])
      if interval then
        local cost = tonumber(options.cost) or declared
        rate = { interval = interval, burst = burst, cost = cost, needed = math.min(cost, burst) }
      end
      push(keys, { name, maximum, rate or false, declared })
    end
  end
  return keys
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

local function set_key_spent(use, time)
  use[SPENT_UNTIL] = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  use[IS_CHANGED] = true
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

local function is_at_maximum(key)
  return key[KEY_MAXIMUM] and get_use(key[KEY_NAME])[IN_USE] >= key[KEY_MAXIMUM]
end

-- Return whether a key has no room for the job.
local function is_full(key)
  if is_at_maximum(key) then
    return true
  end
  local rate = key[KEY_RATE]
  if not rate then
    return false
  end
  rate.spent_until = get_use(key[KEY_NAME])[SPENT_UNTIL]
  return count_room(rate) == 0
end

-- Note when a key that has no room allows a job that is parked for it. The end of a lease makes room below its maximum.
local function note_opening(key)
  local use, rate = get_use(key[KEY_NAME]), key[KEY_RATE]
  if rate and not is_at_maximum(key) then
    rate.spent_until = use[SPENT_UNTIL]
    local opening = find_opening(rate)
    use[OPENS_AT], use[IS_CHANGED] = math.min(use[OPENS_AT] or opening, opening), true
  end
end

-- Return the first of these keys that has no room for the job, or nil.
local function find_full_key(keys)
  for i = 1, #keys do
    if is_full(keys[i]) then
      return keys[i]
    end
  end
end

-- Return whether a member of `ready` comes before another one of its lane.
local function is_member_before(one, other)
  local rank, other_rank = byte(one, READY_RANK), byte(other, READY_RANK)
  if rank ~= other_rank then
    return rank < other_rank
  end
  return is_earlier(sub(one, READY_DUE, READY_END), sub(other, READY_DUE, READY_END))
end

-- The range of the members of `parked` for a key and, with `lane4`, a lane.
local function get_parked_range(name, lane4)
  if lane4 then
    return '[' .. name .. '\0' .. lane4, '(' .. name .. '\0' .. sub(range_end(lane4), 2)
  end
  return '[' .. name .. '\0', '(' .. name .. '\1'
end

-- Return what a job adds to the name of a key in `parked_lane`: what comes before it, and what follows. `waiting` is a member of `ready`,
-- and the tenant if it needs a turn.
local function split_waiting(waiting)
  return sub(waiting, 1, READY_END), sub(waiting, READY_END + 1)
end

-- Park a job for a key; write_parked writes it.
local function collect_parked(name, waiting)
  local member, suffix = split_waiting(waiting)
  push_pair(to_park.parked, 0, name .. '\0' .. waiting)
  push_pair(to_park.parked_lane, 0, member .. name .. suffix)
  get_use(name)[HAS_PARKED], any_parked = true, true
end

-- Collect that a job is not parked for a key any more.
local function collect_unparked(name, waiting)
  local member, suffix = split_waiting(waiting)
  push(to_return.parked, name .. '\0' .. waiting)
  push(to_return.parked_lane, member .. name .. suffix)
  return member, suffix
end

-- Return a job that is parked for a key to its lane; write_returned and write_turns write it. Return its group if it needs a turn.
local function collect_returned(name, waiting)
  local member, suffix = collect_unparked(name, waiting)
  local lane = get_lane(sub(member, 1, READY_LANE_END))
  mark_queue(lane.queue)
  if suffix == '' then
    push_pair(to_return.ready, 0, member)
    return nil
  end
  local _, rank, due8, field = read_ready(member)
  return add_turn(lane, rank, due8, field, sub(suffix, 2), true)
end

-- Park a job that is parked for the key `name` for another key; write_parked writes it.
local function collect_moved(name, other, waiting)
  collect_unparked(name, waiting)
  note_opening(other)
  collect_parked(other[KEY_NAME], waiting)
end

-- Split the end of a member of `parked_lane` into the name of the key, and what the tenant adds.
local function split_parked(rest)
  local name = string.match(rest, '^%Z*%z%Z*')
  return name, sub(rest, #name + 1)
end

local function write_returned()
  call_in_batches('ZREM', parked_key, to_return.parked)
  call_in_batches('ZREM', parked_lane_key, to_return.parked_lane)
  call_in_batches('ZADD', ready_key, to_return.ready)
  to_return = { ready = {}, parked = {}, parked_lane = {} }
end

-- Write what returns, and then what is parked: a job may do both in one exchange, and returns first. Called before a lane is read again.
local function write_parked()
  write_returned()
  call_in_batches('ZREM', ready_key, to_park.ready)
  call_in_batches('ZADD', parked_key, to_park.parked)
  call_in_batches('ZADD', parked_lane_key, to_park.parked_lane)
  to_park = { ready = {}, parked = {}, parked_lane = {} }
end

-- Return the first job of a lane that is parked for a key to its lane.
local function unpark(name, lane4)
  local low, high = get_parked_range(name, lane4)
  local members = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1)
  if #members > 0 then
    collect_returned(name, sub(members[1], #name + 2))
    write_returned()
  end
end

-- Collect the first `most` jobs of each lane that are parked for a key. write_returned writes it.
local function unpark_all_lanes(name, most)
  local low, high = get_parked_range(name)
  while true do
    local members = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, most)
    if #members == 0 then
      return
    end
    local lane4 = sub(members[1], #name + 2, #name + 5)
    for _, parked in ipairs(members) do
      if sub(parked, #name + 2, #name + 5) == lane4 then
        collect_returned(name, sub(parked, #name + 2))
      end
    end
    local _, lane_end = get_parked_range(name, lane4)
    low = '[' .. sub(lane_end, 2)
  end
end

-- Return jobs whose rate allows one now to their lanes, for some of the keys.
local function unpark_open()
  local names = redis.call('ZRANGEBYSCORE', key_opening_key, '-inf', now, 'LIMIT', 0, MAX_OPENED)
  read_uses(names)
  for _, name in ipairs(names) do
    local use = get_use(name)
    use[OPENS_AT], use[IS_CHANGED] = false, true
    unpark_all_lanes(name, 1)
  end
  write_returned()
end

-- Collect up to `most` jobs of a lane that are parked for any key, after the member `last` of `ready`. Return how many, the last of
-- them, and the one that follows, or nil.
local function return_from_lane(lane4, last, most)
  local low = last == '' and '[' .. lane4 or '(' .. last .. '\255'
  local members = redis.call('ZRANGEBYLEX', parked_lane_key, low, range_end(lane4), 'LIMIT', 0, most + 1)
  local count = math.min(#members, most)
  for i = 1, count do
    local name, suffix = split_parked(sub(members[i], READY_END + 1))
    last = sub(members[i], 1, READY_END)
    collect_returned(name, last .. suffix)
  end
  return count, last, members[count + 1]
end

-- Collect up to `most` jobs of a lane that are parked for one key. Return how many, and the one that follows, or nil.
local function return_for_key(name, lane4, most)
  local low, high = get_parked_range(name, lane4)
  local members = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, most + 1)
  local count = math.min(#members, most)
  for i = 1, count do
    collect_returned(name, sub(members[i], #name + 2))
  end
  return count, members[count + 1] and sub(members[count + 1], #name + 2)
end

-- Return parked jobs after limits changed, some in each call, the first of each lane. Return, by lane, the first member of `ready` that
-- still returns, and what follows it. A field of `changed_lane` is a lane, or a lane and the name of a key. Its value: for a lane, the
-- last job that returned, so that jobs which are parked again do not return twice; for a key, the most jobs that return.
local function unpark_changed()
  local found, left = {}, MAX_RETURNED
  local flat = redis.call('HGETALL', changed_lane_key)
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    local lane4, name = sub(field, 1, 4), sub(field, 5)
    local most, count, following = math.ceil(left * 2 / (#flat - i + 1)), nil, nil
    if name == '' then
      count, value, following = return_from_lane(lane4, value, most)
    else
      count, following = return_for_key(name, lane4, math.min(most, tonumber(value)))
      value = string.format('%.0f', tonumber(value) - count)
      following = value ~= '0' and following
    end
    write_returned()
    left = left - count
    if following then
      redis.call('HSET', changed_lane_key, field, value)
      following = sub(following, 1, READY_END)
      if not found[lane4] or is_member_before(following, found[lane4]) then
        found[lane4] = following
      end
    else
      redis.call('HDEL', changed_lane_key, field)
    end
  end
  return found
end

-- Let the first `most` jobs of each lane that are parked for a key return, in the calls of unpark_changed.
local function let_return(name, most)
  local low, high = get_parked_range(name)
  while true do
    local first = redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    local lane4 = sub(first, #name + 2, #name + 5)
    redis.call('HSET', changed_lane_key, lane4 .. name, string.format('%.0f', most))
    local _, lane_end = get_parked_range(name, lane4)
    low = '[' .. sub(lane_end, 2)
  end
end

-- Return when the rate of a key first allows a parked job, or nil. An opening stays when the last job that waited for it was
-- cancelled or moved; after MAX_CHECKED of these, the time is that of the next opening, whether a job waits for it or not.
local function get_next_key_opening()
  local openings = redis.call('ZRANGE', key_opening_key, 0, MAX_CHECKED, 'WITHSCORES')
  for i = 1, #openings, 2 do
    local low, high = get_parked_range(openings[i])
    if i > 2 * MAX_CHECKED or #redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1) > 0 then
      return tonumber(openings[i + 1])
    end
  end
end

-- Park a member of `ready`, or the first job of a tenant's group; write_parked writes it.
local function park(member, key, group)
  local suffix = group and get_tenant_suffix(group[GROUP_SHARE][SHARE_TENANT]) or ''
  if group then
    stop_waiting(group, group[GROUP_PLACE])
    move_group(group)
  else
    push(to_park.ready, member)
  end
  note_opening(key)
  collect_parked(key[KEY_NAME], member .. suffix)
end

-- Return the key for which a member of `ready` is parked, or nil, and what the tenant adds.
local function find_parked(member)
  local found = redis.call('ZRANGEBYLEX', parked_lane_key, '[' .. member, '[' .. member .. '\255', 'LIMIT', 0, 1)[1]
  if found then
    return split_parked(sub(found, #member + 1))
  end
end

-- Delete a parked member of `ready`; return whether it was parked.
local function drop_parked(member)
  if redis.call('ZCARD', parked_lane_key) == 0 then
    return false
  end
  local name, suffix = find_parked(member)
  if name then
    redis.call('ZREM', parked_key, name .. '\0' .. member .. suffix)
    redis.call('ZREM', parked_lane_key, member .. name .. suffix)
  end
  return name ~= nil
end

-- Let jobs that are parked for the keys of a cancelled job have its turn.
local function pass_turns(body, lane)
  for _, key in ipairs(list_job_keys(lane, body)) do
    unpark(key[KEY_NAME], lane.number)
  end
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

-- Count a job for its keys, and set when the next parked job has its turn.
local function count_keys(keys)
  for i = 1, #keys do
    local key = keys[i]
    local use, rate = get_use(key[KEY_NAME]), key[KEY_RATE]
    use[IN_USE], use[IS_CHANGED] = use[IN_USE] + 1, true
    if rate then
      set_key_spent(use, math.max(use[SPENT_UNTIL], now) + rate.cost * rate.interval)
      if has_parked(key[KEY_NAME], use) then
        use[OPENS_AT] = math.max(now, use[SPENT_UNTIL] - (rate.burst - 1) * rate.interval)
      end
    end
  end
end

-- Take back what count_keys counted for a job that does not fit in the reply.
local function take_back(keys)
  for _, key in ipairs(keys) do
    local use = get_use(key[KEY_NAME])
    use[IN_USE], use[IS_CHANGED] = use[IN_USE] - 1, true
    if key[KEY_RATE] then
      set_key_spent(use, use[SPENT_UNTIL] - key[KEY_RATE].cost * key[KEY_RATE].interval)
    end
  end
end

-- Return the names of keys as a part of a lease. Jobs that share the list share it.
local function pack_names(keys)
  if not keys.packed then
    local packed = ''
    for i = 1, #keys do
      local name = keys[i][KEY_NAME]
      packed = packed .. pack_struct('>I2c0', #name, name)
    end
    keys.packed = packed
  end
  return keys.packed
end

-- Add the names in a part of a lease to a list.
local function add_names(names, packed)
  local at = 1
  while at < #packed do
    names[#names + 1], at = unpack_struct('>I2c0', packed, at)
  end
end

-- Stop counting leases that ended for these keys, and let the next parked jobs have their turn. `ended`: a part of each lease.
local function release_keys(ended)
  if #ended == 0 then
    return
  end
  local jobs, names, counts = {}, {}, {}
  for i = 1, #ended do
    jobs[ended[i]] = (jobs[ended[i]] or 0) + 1
  end
  for i = 1, #ended do -- in the order of the leases; those with the same keys together
    local count, first = jobs[ended[i]], #names + 1
    if count then
      jobs[ended[i]] = nil
      add_names(names, ended[i])
      for n = first, #names do
        counts[names[n]] = (counts[names[n]] or 0) + count
      end
    end
  end
  read_uses(names)
  local any_waits = redis.call('ZCARD', parked_key) > 0
  for n = 1, #names do
    local name = names[n]
    local count, use = counts[name], known_uses[name]
    if count then
      counts[name] = nil
      use[IN_USE], use[IS_CHANGED] = use[IN_USE] - count, true
      if any_waits then
        unpark_all_lanes(name, count)
      end
    end
  end
  write_returned()
end

-- Return what a job that has not started took from the rates of the keys for which its lease counts.
local function refund_keys(field, lane, lease)
  if not lease.keys or not has_keyed_limits() then
    return
  end
  local counted, elapsed = {}, math.max(0, now - decode_time(lease.started8, 1))
  local names = {}
  add_names(names, lease.keys)
  for i = 1, #names do
    counted[names[i]] = true
  end
  for _, key in ipairs(list_job_keys(lane, redis.call('HGET', job_key, field))) do
    local rate = counted[key[KEY_NAME]] and key[KEY_RATE]
    if rate then
      local use = get_use(key[KEY_NAME])
      set_key_spent(use, use[SPENT_UNTIL] - math.max(0, rate.cost * rate.interval - elapsed))
    end
  end
end

-- Take units of the rates of these keys, or give some back if the number is negative.
local function spend_key_units(keys, units)
  for _, key in ipairs(keys) do
    if key[KEY_RATE] then
      local use = get_use(key[KEY_NAME])
      local start = units > 0 and math.max(use[SPENT_UNTIL], now) or use[SPENT_UNTIL]
      set_key_spent(use, start + units * key[KEY_RATE].interval)
    end
  end
end

-- Let the rates of these keys allow no job for `delay` microseconds. Return whether there is a rate.
local function block_keys(keys, delay)
  local found = false
  for _, key in ipairs(keys) do
    local rate = key[KEY_RATE]
    if rate then
      local use, needed = get_use(key[KEY_NAME]), math.min(key[KEY_DECLARED_COST], rate.burst)
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
local function write_key_uses()
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
