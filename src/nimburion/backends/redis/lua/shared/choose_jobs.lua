-- Shared part of exchange: chooses jobs from several lanes, and jobs of names that have limits.
-- Keys: job concurrency_limit limit_in_use
-- Provides: get_capacity(name, capacities), choose_from_keyed_lane(lane, capacity), make_turn_lanes(lanes)
--   merge_lanes(lanes, turn_lanes, total, ageing, caps, capacities) -> members of `ready`, in order
--   find_next_opening(rated)
-- Cost: O(log n + log k) per job, for n waiting jobs and k lanes; more for jobs with limits by key.

-- MAX_PARKED in core/keyed_limits.py
local MAX_PARKED = 1000
-- How many jobs with limits by key are read at a time, at least; fewer if fewer wait.
local MIN_CANDIDATES = 16

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
    push(fields, sub(members[i], READY_SEQ))
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

-- Count a job for its keys, or park it if one of them has no room and return false.
-- `group` is that of the tenant whose turn is next, or nil.
local parked_count = 0

local function admit(member, lane, missing, group)
  local field = sub(member, READY_SEQ)
  if not known_keys[field] then
    local members, first = lane.members, lane.at
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
  if full then
    choice.has_returned, parked_count = park(member, keys, full, group), parked_count + 1
    return false
  end
  if #keys > 0 then
    count_keys(keys)
    choice.keys[field] = keys
  end
  return true
end

-- Return whether the exchange reserves no more: it parked too many jobs, or a lane got jobs back.
local function must_stop()
  return choice.has_returned or parked_count >= MAX_PARKED
end

-- Choose from a single lane whose jobs have limits by key.
local function choose_from_keyed_lane(lane, capacity)
  local chosen = {}
  read_more(lane, capacity + 1)
  while #chosen < capacity and (lane.members[lane.at] or read_more(lane, math.max(2 * (capacity - #chosen), MIN_CANDIDATES))) do
    local member = lane.members[lane.at]
    if admit(member, lane, capacity - #chosen) then
      push(chosen, member)
    elseif must_stop() then
      lane.has_more = true
    end
    lane.at = lane.at + 1
    if lane.has_more then
      break
    end
  end
  return chosen
end

-- --- the turns of tenants: those of all lanes of a queue are together one more lane ---

-- Find the group whose turn is next in a queue, and set the sort keys of its lane. Return false if there is none.
local function rank_turns(turn_lane, ageing, capacities, missing)
  turn_lane.group = nil
  for _, lane in ipairs(turn_lane.lanes) do
    local capacity = capacities[lane.name]
    local group = not (capacity and capacity <= 0) and peek_turn(lane, missing)
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
  local is_admitted = not lane.is_keyed or admit(member, lane, missing)
  lane.at = lane.at + 1
  return is_admitted and member or nil
end

-- Choose from several lanes: repeatedly take the best head. A heap holds the lanes, the one with the best head at its top.
local function merge_lanes(lanes, turn_lanes, total, ageing, caps, capacities)
  local heap, count, chosen = {}, 0, {}
  local taken = 0 -- jobs of names with a limit: the turns must be ranked again after each
  local share = math.min(total, math.floor(total / #lanes) + 2)
  for _, lane in ipairs(lanes) do
    lane.chunk = share
    if read_more(lane, share) and rank_head(lane, ageing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for _, lane in ipairs(turn_lanes) do
    if rank_turns(lane, ageing, capacities, total) then
      count = count + 1
      heap[count] = lane
    end
  end
  for at = math.floor(count / 2), 1, -1 do
    sift_down(heap, at, count, is_before)
  end
  while count > 0 and #chosen < total do
    local lane = heap[1]
    local cap, capacity = caps[lane.queue], capacities[lane.name]
    local more = false
    if not (cap and cap <= 0) and not (capacity and capacity <= 0) then
      local seq, missing = lane.seq, total - #chosen
      if lane.lanes and lane.ranked_at ~= taken
        and not (rank_turns(lane, ageing, capacities, missing) and lane.seq == seq) then
        more = lane.group ~= nil -- the name of the job has reached its limit meanwhile
      else
        local name = lane.lanes and lane.source.name or lane.name
        local member = take_head(lane, missing)
        if member then
          chosen[#chosen + 1] = member
          if cap then
            caps[lane.queue] = cap - 1
          end
          if capacities[name] then
            capacities[name], taken = capacities[name] - 1, taken + 1
          end
        elseif must_stop() then
          lane.has_more = true
          break
        end
        if lane.lanes then
          more = #chosen < total and rank_turns(lane, ageing, capacities, total - #chosen)
          lane.ranked_at = taken
        else
          more = rank_head(lane, ageing)
        end
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
