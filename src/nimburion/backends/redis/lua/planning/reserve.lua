-- Part of planning: decides which jobs an exchange leases, and which it parks (backends/planning/reserve.py).
--
-- The lanes are merged by the rank of their first jobs. The turns of the tenants of a queue are one more lane. The limits of job names and
-- of queues, and the most jobs of a queue in a reply, close lanes. Any other limit parks the job that has no room in it.
-- Provides: plan_reserve(lanes, has_turns, total, ageing, caps) -> members of `ready`, in order. `lanes` are those that are
--   not closed; what is parked and returned is written. find_next_opening(rated)
-- Cost: O(log n + log k) per job, for n waiting jobs and k lanes; more for jobs with limits by key.
-- As in core/limits.py
local MAX_PARKED = 1000
local parked_count = 0

local function close_full_lanes(lanes)
  for _, lane in ipairs(lanes) do
    lane.is_closed = lane.is_closed or #lane.limits > 0 and find_full(lane.limits) ~= nil
  end
end

-- Return one more lane for each queue whose tenants may have waiting jobs.
local function open_turn_queues(lanes)
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

-- Find the group whose turn is next in a queue, and set the sort keys of its lane. Return false if there is none.
local function find_turn_head(turn_lane, ageing, missing)
  turn_lane.group = nil
  for _, lane in ipairs(turn_lane.lanes) do
    local group = not lane.is_closed and find_turn(lane, missing)
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

-- Return a heap of the lanes that have a head, the one with the best head at its top, and their number.
local function open_queues(lanes, turn_lanes, total, missing, ageing)
  local heap, count = {}, 0
  local share = math.min(total, math.floor(total / #lanes) + 2)
  for _, lane in ipairs(lanes) do
    if not lane.chunk then
      read_more(lane, share)
    end
    if not lane.is_closed and find_head(lane, ageing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for _, lane in ipairs(turn_lanes) do
    if find_turn_head(lane, ageing, missing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for at = math.floor(count / 2), 1, -1 do
    sift_down(heap, at, count, is_before)
  end
  return heap, count
end

-- Leave a lane to the next exchange, because this one parked as many jobs as it may.
local function leave_lane(lane)
  lane.is_closed, lane.has_more, choice.is_stale = true, true, true
end

-- Return a parked job to its lane. `has_turn`: whether the job that passed its turn on has a tenant. If only one of them has, the heap of
-- lanes is made anew, because the other part of the lane has another head.
local function return_job(lane, name, waiting, has_turn)
  local group = collect_returned(name, waiting)
  if group then
    push_group(lane, group)
  else
    add_returned(lane, waiting)
  end
  if has_turn ~= (group ~= nil) then
    choice.is_stale = true
  end
end

local function find_limit(limits, name)
  for i = 1, #limits do
    if limits[i][LIMIT_NAME] == name then
      return limits[i]
    end
  end
end

-- Return the first job of a lane that is parked for a key and may run. The jobs before it, which have no room in another limit, move to
-- that one.
local function pass_turn(lane, name, has_turn)
  while true do
    local waiting, next_jobs = peek_parked(lane, name)
    if not waiting then
      return
    end
    local limits = known_limits[sub(waiting, READY_SEQ, READY_END)]
    local own = find_limit(limits, name)
    if own and not has_room(own) then
      return wait_for(own)
    end
    next_jobs.at = next_jobs.at + 1
    local full = find_full(limits)
    if full and parked_count >= MAX_PARKED then
      leave_lane(lane)
    end
    if not full or lane.is_closed then
      return return_job(lane, name, waiting, has_turn)
    end
    collect_moved(name, full, waiting)
    note_parked(lane, full)
    parked_count = parked_count + 1
  end
end

-- Park a job that has no room in a limit, and pass its turn at its other keys on.
local function park_job(member, lane, full, limits, group)
  park(member, full, group)
  note_parked(lane, full)
  parked_count = parked_count + 1
  for _, limit in ipairs(limits) do
    local name = limit[LIMIT_NAME]
    if limit ~= full and not is_at_maximum(limit) and has_parked(name, get_use(name)) then
      pass_turn(lane, name, group ~= nil)
    end
  end
end

-- Count a job in its limits; or if one of them has no room, park the job and return false. `group` is that of the tenant whose turn is
-- next, or nil. An exchange that has parked as many jobs as it may leaves the lane instead.
local function admit(member, lane, missing, group)
  local field = sub(member, READY_SEQ)
  if not known_limits[field] then
    local members, first = lane.members, lane.at - 1
    if group then
      members, first = { member }, 1
      for i = 1, math.min(#lane.turns, missing) do
        push(members, lane.number .. '.' .. (lane.turns[i][GROUP_PLACE] or group[GROUP_PLACE]))
      end
    end
    read_limits(lane, members, first, math.max(missing, MIN_CANDIDATES))
  end
  local limits = known_limits[field]
  local full = find_full(limits)
  if not full then
    if #limits > 0 then
      take_in_limits(limits)
      choice.limits[field] = limits
    end
    return true
  end
  if parked_count >= MAX_PARKED then
    leave_lane(lane)
  else
    park_job(member, lane, full, limits, group)
  end
  return false
end

-- Reserve the job whose turn is next, or park it and return nil.
local function lease_turn(turn_lane, missing)
  local group, lane = turn_lane.group, turn_lane.source
  local member = lane.number .. group[GROUP_SHARE][SHARE_CLASS].rank .. group[GROUP_PLACE]
  if lane.is_keyed and not admit(member, lane, missing, group) then
    return nil
  end
  choice.turns[sub(member, READY_SEQ)] = charge_tenant(group)
  return member
end

-- Reserve or park the first job of a lane. Return its member of `ready` if it is reserved.
local function lease_head(lane, missing)
  if lane.lanes then
    return lease_turn(lane, missing)
  end
  local member = lane.members[lane.at]
  lane.at = lane.at + 1
  return (not lane.is_keyed or admit(member, lane, missing)) and member or nil
end

-- Reserve or park the first job of a lane whose limits have room, and add it to `chosen` if it is reserved. If the lane is full then, the
-- next turn of a queue may have a better rank than the one before it, because turns do not go by the level of the job: the heap is stale.
local function take_head(lane, chosen, total, caps, has_turns)
  local source = lane.lanes and lane.source or lane
  local member = lease_head(lane, total - #chosen)
  if not member then
    return
  end
  chosen[#chosen + 1] = member
  if caps[lane.queue] then
    caps[lane.queue] = caps[lane.queue] - 1
  end
  if #source.limits > 0 then
    take_in_lane(source, 1)
    choice.is_stale = choice.is_stale or has_turns and find_full(source.limits) ~= nil
  end
end

-- Add the best heads to `chosen`, until there are `total` of them, no head, or the heap is stale: a job of another kind returned (see
-- return_job), or a lane was left, or became full while tenants wait for turns.
local function merge_heads(heap, count, chosen, total, ageing, caps, has_turns)
  while count > 0 and #chosen < total and not choice.is_stale do
    local lane, more = heap[1], false
    local cap, source = caps[lane.queue], lane.lanes and lane.source or lane
    if not (cap and cap <= 0) then
      if #source.limits > 0 and find_full(source.limits) then
        source.is_closed = true
      else
        take_head(lane, chosen, total, caps, has_turns)
      end
      if lane.lanes then
        more = #chosen < total and find_turn_head(lane, ageing, total - #chosen)
      else
        more = not lane.is_closed and #chosen < total and find_head(lane, ageing)
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

-- Choose from several lanes, or from one with limits for which jobs may be parked: repeatedly take the best head.
local function plan_reserve(lanes, has_turns, total, ageing, caps)
  local chosen = {}
  repeat
    has_turns, choice.is_stale = has_turns or any_shares(), false
    if has_turns then
      close_full_lanes(lanes)
    end
    local turn_lanes = has_turns and open_turn_queues(lanes) or {}
    local heap, count = open_queues(lanes, turn_lanes, total, total - #chosen, ageing)
    merge_heads(heap, count, chosen, total, ageing, caps, has_turns)
  until not choice.is_stale
  write_parked()
  return chosen
end

-- Return the time at which the first rate that closes one of these lanes allows a job, or nil.
local function find_next_opening(rated)
  local first
  for i = 1, #rated, 2 do
    local number, limit = rated[i], rated[i + 1]
    local rate = limit[LIMIT_RATE]
    rate.spent_until = get_use(limit[LIMIT_NAME])[SPENT_UNTIL]
    local opening = count_room(rate) == 0 and find_opening(rate)
    if opening and (not first or opening < first) and holds_jobs(number) then
      first = opening
    end
  end
  return first
end
