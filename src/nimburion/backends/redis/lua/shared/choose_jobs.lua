-- Shared part of exchange: chooses jobs from several lanes, and jobs of names that have limits.
-- Keys: job concurrency_limit limit_in_use parked
-- Provides: get_capacity(name, capacities)
--   merge_lanes(lanes, has_turns, total, ageing, caps, capacities) -> members of `ready`, in order
--   find_next_opening(rated)
-- Cost: O(log n + log k) per job, for n waiting jobs and k lanes; more for jobs with limits by key.

-- As in core/keyed_limits.py
local MAX_PARKED = 1000
-- How many jobs with limits by key are read at a time, at least; fewer if fewer wait. And at most, of those that are parked.
local MIN_CANDIDATES, MAX_CANDIDATES = 16, 250

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

-- Set the sort keys of a lane's head: level (higher first), then rank, due, seq (lower first). Return false if the lane is empty.
local function rank_head(lane, ageing)
  local member = lane.members[lane.at]
  if not member then
    if not read_more(lane, math.min(2 * lane.chunk, MAX_PARKED)) then
      return false
    end
    member = lane.members[1]
  end
  local due = decode_time(member, READY_DUE)
  lane.level = lane.priority
  if ageing > 0 and now > due then
    lane.level = lane.level + math.floor((now - due) / ageing)
  end
  lane.rank, lane.due = byte(member, READY_RANK), due
  lane.seq = unpack_struct('>I8', member, READY_SEQ)
  return true
end

local function is_before(lane, other)
  if lane.level ~= other.level then
    return lane.level > other.level
  end
  if lane.rank ~= other.rank then
    return lane.rank < other.rank
  end
  if lane.due ~= other.due then
    return lane.due < other.due
  end
  return lane.seq < other.seq
end

-- Read jobs of a lane, and what is in use of their keys, with two commands. `members` of `ready`: at most `most`, from `first` on.
local known_keys = {}

local function read_candidates(lane, members, first, most)
  local fields, names = {}, {}
  for i = first, math.min(first + most - 1, #members) do
    push(fields, sub(members[i], READY_SEQ, READY_END))
  end
  local bodies = get_in_batches(job_key, fields)
  for i = 1, #fields do
    local keys = list_job_keys(lane, bodies[i])
    choice.bodies[fields[i]], known_keys[fields[i]] = bodies[i], keys
    for j = 1, #keys do
      push(names, keys[j][KEY_NAME])
    end
  end
  read_uses(names)
end

-- --- the turns of parked jobs: those of a lane that are parked for a key with room ---

local parked_count, parked_turns = 0, {}

-- Return the next of the jobs of a lane that are parked for a key, as in collect_returned, or nil.
local function peek_parked(lane, name)
  local place = name .. '\0' .. lane.number
  local next_jobs = parked_turns[place]
  if not next_jobs then
    write_parked()
    local low, high = get_parked_range(name, lane.number)
    next_jobs = { members = {}, at = 1, chunk = 1, low = low, high = high }
    parked_turns[place] = next_jobs
  end
  if not next_jobs.members[next_jobs.at] and next_jobs.chunk > 0 then
    local members = redis.call('ZRANGEBYLEX', parked_key, next_jobs.low, next_jobs.high, 'LIMIT', 0, next_jobs.chunk)
    local is_last = #members < next_jobs.chunk
    next_jobs.low = '(' .. (members[#members] or '')
    next_jobs.chunk = is_last and 0 or math.min(math.max(2 * next_jobs.chunk, MIN_CANDIDATES), MAX_CANDIDATES)
    for i = 1, #members do
      members[i] = sub(members[i], #name + 2)
    end
    read_candidates(lane, members, 1, #members)
    next_jobs.members, next_jobs.at = members, 1
  end
  return next_jobs.members[next_jobs.at], next_jobs
end

-- Count a job that is parked for a key. It may come before those that were read.
local function note_parked(lane, key)
  parked_turns[key[KEY_NAME] .. '\0' .. lane.number], parked_count = nil, parked_count + 1
end

-- Put a job that returned to a lane in its place among the members that were read. The others are read in their order.
local function insert_member(lane, member)
  local members = lane.members
  local low, high = lane.at, #members + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_member_before(member, members[middle]) then
      high = middle
    else
      low = middle + 1
    end
  end
  local is_read = lane.is_exhausted and not (lane.following and is_member_before(lane.following, member))
  if is_read or members[low] or members[low - 1] and is_member_before(member, members[low - 1]) then
    table.insert(members, low, member)
  else
    write_returned()
  end
end

-- Return a parked job to its lane. `has_turn`: whether the job that passed its turn on has a tenant. If only one of them has, the heap of
-- lanes is made anew, because the other part of the lane has another head.
local function return_parked(lane, name, waiting, has_turn)
  local group = collect_returned(name, waiting)
  if group then
    place_group(lane, group)
  else
    insert_member(lane, waiting)
  end
  if has_turn ~= (group ~= nil) then
    choice.is_stale = true
  end
end

-- Leave a lane to the next exchange, because this one parked as many jobs as it may.
local function leave_lane(lane)
  lane.is_closed, lane.has_more, choice.is_stale = true, true, true
end

local function find_key(keys, name)
  for i = 1, #keys do
    if keys[i][KEY_NAME] == name then
      return keys[i]
    end
  end
end

-- Let the next job that is parked for a key return to the lane. Those for which another key is full are parked for that one instead.
local function pass_turn(lane, name, has_turn)
  while true do
    local waiting, next_jobs = peek_parked(lane, name)
    if not waiting then
      return
    end
    local keys = known_keys[sub(waiting, READY_SEQ, READY_END)]
    local own = find_key(keys, name)
    if own and is_full(own) then
      return note_opening(own)
    end
    next_jobs.at = next_jobs.at + 1
    local full = find_full_key(keys)
    if full and parked_count >= MAX_PARKED then
      leave_lane(lane)
    end
    if not full or lane.is_closed then
      return return_parked(lane, name, waiting, has_turn)
    end
    collect_moved(name, full, waiting)
    note_parked(lane, full)
  end
end

-- Count a job for its keys, or park it if one of them has no room and return false. Its turn at its other keys passes on.
-- `group` is that of the tenant whose turn is next, or nil. An exchange that has parked as many jobs as it may closes the lane instead.
local function admit(member, lane, missing, group)
  local field = sub(member, READY_SEQ)
  if not known_keys[field] then
    local members, first = lane.members, lane.at - 1
    if group then
      members, first = { member }, 1
      for i = 1, math.min(#lane.turns, missing) do
        push(members, lane.number .. '.' .. (lane.turns[i][GROUP_PLACE] or group[GROUP_PLACE]))
      end
    end
    read_candidates(lane, members, first, math.max(missing, MIN_CANDIDATES))
  end
  local keys = known_keys[field]
  local full = find_full_key(keys)
  if full and parked_count >= MAX_PARKED then
    leave_lane(lane)
    return false
  elseif full then
    park(member, full, group)
    note_parked(lane, full)
    for _, key in ipairs(keys) do
      if key ~= full and not is_at_maximum(key) and has_parked(key[KEY_NAME], get_use(key[KEY_NAME])) then
        pass_turn(lane, key[KEY_NAME], group ~= nil)
      end
    end
    return false
  end
  if #keys > 0 then
    count_keys(keys)
    choice.keys[field] = keys
  end
  return true
end

-- --- the turns of tenants: those of all lanes of a queue are together one more lane ---

-- Find the group whose turn is next in a queue, and set the sort keys of its lane. Return false if there is none.
local function rank_turns(turn_lane, ageing, capacities, missing)
  turn_lane.group = nil
  for _, lane in ipairs(turn_lane.lanes) do
    local capacity = capacities[lane.name]
    local group = not lane.is_closed and not (capacity and capacity <= 0) and peek_turn(lane, missing)
    if group and (not turn_lane.group or is_turn_before(group, turn_lane.group)) then
      turn_lane.group, turn_lane.source = group, lane
    end
  end
  local group = turn_lane.group
  if not group then
    return false
  end
  turn_lane.level = turn_lane.priority
  if ageing > 0 and now > group[GROUP_KEY_DUE] then
    turn_lane.level = turn_lane.level + math.floor((now - group[GROUP_KEY_DUE]) / ageing)
  end
  turn_lane.rank, turn_lane.due, turn_lane.seq = group[GROUP_KEY_RANK], group[GROUP_KEY_DUE], group[GROUP_KEY_SEQ]
  return true
end

-- Return one more lane for each queue whose tenants may have waiting jobs.
local function make_turn_lanes(lanes)
  local found, by_queue = {}, {}
  for _, lane in ipairs(lanes) do
    local turn_lane = by_queue[lane.queue]
    if not turn_lane then
      turn_lane = { queue = lane.queue, priority = lane.priority, lanes = {} }
      by_queue[lane.queue] = turn_lane
      push(found, turn_lane)
    end
    push(turn_lane.lanes, lane)
  end
  return found
end

-- Reserve the job whose turn is next, or park it and return nil.
local function take_turn(turn_lane, missing)
  local group, lane = turn_lane.group, turn_lane.source
  local member = lane.number .. group[GROUP_SHARE][SHARE_CLASS].rank .. group[GROUP_PLACE]
  if lane.is_keyed and not admit(member, lane, missing, group) then
    return nil
  end
  choice.turns[sub(member, READY_SEQ)] = charge_tenant(group)
  return member
end

-- Reserve or park the first job of a lane. Return its member of `ready` if it is reserved.
local function take_head(lane, missing)
  if lane.lanes then
    return take_turn(lane, missing)
  end
  local member = lane.members[lane.at]
  lane.at = lane.at + 1
  return (not lane.is_keyed or admit(member, lane, missing)) and member or nil
end

-- Return a heap of the lanes that have a head, the one with the best head at its top, and their number.
local function make_heap(lanes, turn_lanes, total, missing, ageing, capacities)
  local heap, count = {}, 0
  local share = math.min(total, math.floor(total / #lanes) + 2)
  for _, lane in ipairs(lanes) do
    if not lane.chunk then
      read_more(lane, share)
    end
    if not lane.is_closed and rank_head(lane, ageing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for _, lane in ipairs(turn_lanes) do
    if rank_turns(lane, ageing, capacities, missing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for at = math.floor(count / 2), 1, -1 do
    sift_down(heap, at, count, is_before)
  end
  return heap, count
end

-- Add the best heads to `chosen`, until there are `total` of them, no head, or the heap is stale: a job of another kind returned (see
-- return_parked), a lane was left, or a name has no capacity left and the turns of tenants pass over its jobs.
local function take_heads(heap, count, chosen, total, ageing, caps, capacities, has_turns)
  while count > 0 and #chosen < total and not choice.is_stale do
    local lane = heap[1]
    local cap, capacity = caps[lane.queue], capacities[lane.name]
    local more = false
    if not (cap and cap <= 0) and not (capacity and capacity <= 0) then
      local name = lane.lanes and lane.source.name or lane.name
      local member = take_head(lane, total - #chosen)
      if member then
        chosen[#chosen + 1] = member
        if cap then
          caps[lane.queue] = cap - 1
        end
        if capacities[name] then
          capacities[name] = capacities[name] - 1
          choice.is_stale = choice.is_stale or has_turns and capacities[name] <= 0
        end
      end
      if lane.lanes then
        more = #chosen < total and rank_turns(lane, ageing, capacities, total - #chosen)
      else
        more = not lane.is_closed and #chosen < total and rank_head(lane, ageing)
      end
    end
    if not more then
      heap[1] = heap[count]
      heap[count] = nil
      count = count - 1
    end
    if count > 1 then
      sift_down(heap, 1, count, is_before)
    end
  end
end

-- Choose from several lanes, or from one with limits by key: repeatedly take the best head.
local function merge_lanes(lanes, has_turns, total, ageing, caps, capacities)
  local chosen, turn_lanes = {}, has_turns and make_turn_lanes(lanes) or {}
  repeat
    if choice.is_stale then
      choice.is_stale, turn_lanes = false, make_turn_lanes(lanes)
    end
    local heap, count = make_heap(lanes, turn_lanes, total, total - #chosen, ageing, capacities)
    take_heads(heap, count, chosen, total, ageing, caps, capacities, #turn_lanes > 0)
  until not choice.is_stale
  write_parked()
  return chosen
end

-- Return the time at which the first rate limit that delays a job of these lanes allows one, or nil.
local function find_next_opening(rated)
  local first
  for i = 1, #rated, 2 do
    local number, rate = rated[i], get_rate(rated[i + 1])
    local opening = count_room(rate) == 0 and find_opening(rate)
    if opening and (not first or opening < first) and holds_jobs(number) then
      first = opening
    end
  end
  return first
end
