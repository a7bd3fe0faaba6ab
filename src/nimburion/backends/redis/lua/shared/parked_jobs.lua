-- Shared part: parked jobs. Parks jobs, and returns them to their lanes.
-- Keys: parked parked_lane changed_lane limit_opening ready
-- Provides: for planning: park(member, limit, group of a tenant or nil), collect_returned(name, waiting) -> group or nil,
--     collect_moved(name, other limit, waiting), write_returned(), write_parked()
--   when leases end: release_keys(parts of leases); pass_turns(body, lane); drop_parked(member)
--   for the exchange: unpark_open(), unpark_changed() -> first job that still returns by lane, get_next_key_opening()
--   unpark(name, lane4), unpark_all_lanes(name, most), let_return(name, most), find_parked(member) -> its key, or nil
-- Idle: write_parked
-- Atomic: a parked job is in `parked` and `parked_lane`, any other due job in `ready`. No write can fail.
-- Cost: O(log n) per job, for n parked jobs.
-- The most keys whose parked jobs one exchange returns because their rates allow one.
local MAX_OPENED = 500
-- As in core/limits.py
local MAX_RETURNED = 1000
-- The most openings that are passed over because no job waits for them.
local MAX_CHECKED = 100
local to_park, to_return = { ready = {}, parked = {}, parked_lane = {} }, { ready = {}, parked = {}, parked_lane = {} }

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
  wait_for(other)
  collect_parked(other[LIMIT_NAME], waiting)
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

-- Park a member of `ready`, or the first job of a tenant's group; write_parked writes it.
local function park(member, limit, group)
  local suffix = group and get_tenant_suffix(group[GROUP_SHARE][SHARE_TENANT]) or ''
  if group then
    stop_waiting(group, group[GROUP_PLACE])
    move_group(group)
  else
    push(to_park.ready, member)
  end
  wait_for(limit)
  collect_parked(limit[LIMIT_NAME], member .. suffix)
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
  local names = redis.call('ZRANGEBYSCORE', limit_opening_key, '-inf', now, 'LIMIT', 0, MAX_OPENED)
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
  local openings = redis.call('ZRANGE', limit_opening_key, 0, MAX_CHECKED, 'WITHSCORES')
  for i = 1, #openings, 2 do
    local low, high = get_parked_range(openings[i])
    if i > 2 * MAX_CHECKED or #redis.call('ZRANGEBYLEX', parked_key, low, high, 'LIMIT', 0, 1) > 0 then
      return tonumber(openings[i + 1])
    end
  end
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
  for _, limit in ipairs(list_limits(lane, body)) do
    unpark(limit[LIMIT_NAME], lane.number)
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
