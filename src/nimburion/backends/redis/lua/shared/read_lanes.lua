-- Shared part of exchange: reads the requested lanes, and whether anything restricts them.
-- Keys: lane_number ready tenant_turn paused_queue limit changed_lane limit_opening flow_change
-- Provides: is_restricted: whether there is a pause, a limit, a parked job that returns, a tenant that waits for its turn, or a change
--     of a flow that an earlier script has left, when the script begins. Otherwise the exchange reads nothing more about them.
--   read_lane_numbers(request); read_more(lane, most): reads the next members of a lane
--   find_empty_lanes(numbers) -> by number, the lanes that hold no due jobs
--   any_turns(), holds_jobs(number)
--   choice: by field, the bodies that were read, the limits in which jobs are counted and the turns that were taken
-- Cost: one command, and O(log n) per job, for n waiting jobs. Empty lanes cost one field of a command if there are many.
local is_restricted = redis.call(
  'EXISTS', paused_queue_key, limit_key, changed_lane_key, limit_opening_key, tenant_turn_key, flow_change_key
) > 0
may_have_limits = is_restricted
local choice = { bodies = {}, limits = {}, turns = {} }

-- Return the number of each requested lane, or false.
local function read_lane_numbers(request)
  local numbers, requested = {}, request.lanes
  for first = 1, #requested, 3000 do
    local fulls = {}
    for i = first, math.min(first + 2999, #requested), 3 do
      push(fulls, requested[i])
    end
    for i, number in ipairs(redis.call('HMGET', lane_number_key, unpack(fulls))) do
      push(numbers, number)
      if number then
        lane_names[number] = fulls[i]
      end
    end
  end
  return numbers
end

-- Return whether jobs of tenants wait for a turn. They are in the shares that this script has read, until write_turns.
local function any_turns()
  return any_shares() or is_restricted and redis.call('ZCARD', tenant_turn_key) > 0
end

-- With fewer lanes, reading them costs as little as finding those that hold jobs.
local MANY_LANES = 8
-- The most lanes that are found one by one. If more hold jobs, the counts of all requested lanes are read.
local MAX_HOLDING = 64

-- Return the numbers of the lanes that hold jobs without a tenant as a set, by reading the first job of each; nil if they are many.
local function find_holding_lanes()
  local holding, low = {}, '-'
  for _ = 1, MAX_HOLDING do
    local first = redis.call('ZRANGEBYLEX', ready_key, low, '+', 'LIMIT', 0, 1)[1]
    if not first then
      return holding
    end
    local number = sub(first, 1, READY_LANE_END)
    holding[number] = true
    low = '[' .. sub(range_end(number), 2)
  end
end

-- Return, by number, which of many lanes hold no due jobs. Parked jobs may count as such.
local function find_empty_lanes(numbers)
  local empty, fields, known = {}, {}, {}
  if #numbers <= MANY_LANES then
    return empty
  end
  local holding = not any_turns() and find_holding_lanes()
  if holding then
    for _, number in ipairs(numbers) do
      empty[number] = not holding[number]
    end
    return empty
  end
  for _, number in ipairs(numbers) do
    if number then
      push(known, number)
      push_pair(fields, number .. PENDING, number .. RETRYING)
    end
  end
  local counts = get_in_batches(lane_counts_key, fields)
  for i, number in ipairs(known) do
    local lane = known_lanes[number]
    local changed = lane and lane[PENDING] + lane[RETRYING] or 0
    empty[number] = tonumber(counts[2 * i - 1] or 0) + tonumber(counts[2 * i] or 0) + changed <= 0
  end
  return empty
end

-- Read the next members of a lane. Return false at its end.
local function read_more(lane, most)
  if lane.is_exhausted then
    return false
  end
  lane.members = redis.call('ZRANGEBYLEX', ready_key, lane.low, lane.high, 'LIMIT', 0, most)
  lane.at = 1
  local got = #lane.members
  lane.is_exhausted = got < most
  lane.chunk = most
  if got > 0 then
    lane.low = '(' .. lane.members[got]
  end
  return got > 0
end

-- Return whether a lane holds jobs now.
local function holds_jobs(number)
  return #redis.call('ZRANGEBYLEX', ready_key, '[' .. number, range_end(number), 'LIMIT', 0, 1) > 0 or has_turns(number)
end
