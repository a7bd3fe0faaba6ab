-- Shared part of exchange: chooses jobs, in the order of the contract. If only limits that close lanes restrict a
-- single lane, it takes the first ones; otherwise planning decides (docs/decisions/0044).
-- Provides: read_request(packed)
--   find_open_lanes(request, numbers, following) -> the lanes of the request that can be reserved from
--   choose_jobs(lanes, request) -> members of `ready`, in order
--   find_waiting_lanes(lanes) -> the indexes, in the request, of lanes with more jobs
-- The request is a MessagePack array:
--   1 total: the maximum number of jobs
--   2 ageing: microseconds of waiting that raise a job by one level; 0: no ageing
--   3 lanes: {full lane name, queue, job name, ...}
--   4 queues: {queue: {priority, limit or false}}
--   5 waits_on_stream: whether the next exchange waits on the wake-up streams (see idle_workers.lua)
--   6 max_bytes: the maximum bytes of the reply
--   7 handle: the id of the handle, for its idle entries (see idle_workers.lua)
--   8 free_slots: the number of jobs that the worker can start at once
--   9 registered: {handle and mode, queue, ...}: the idle entries that the handle may have
-- Cost: O(log n) per job, for n waiting jobs; O(log k) more per job for k lanes.
local MAX_WAITING_LANES = 64
-- Positions of the options of a queue in a request.
local QUEUE_PRIORITY, QUEUE_MOST = 1, 2
local NO_LIMITS = {}

-- Return the fields of a request; exchange.py encodes them in this order.
local function read_request(packed)
  local values = cmsgpack.unpack(packed)
  return {
    total = values[1], ageing = values[2], lanes = values[3], queues = values[4], waits_on_stream = values[5], max_bytes = values[6],
    handle = values[7], free_slots = values[8], registered = values[9],
  }
end

-- Return the requested lanes that exist, may hold due jobs, are not paused and whose limits have room. `rated`: {number, limit, ...} of the
-- limits with rates.
-- Jobs still return to the lanes in `following`, from that member on. It ends the lane for now, so that no job is reserved before another
-- that comes before it.
local function find_open_lanes(request, numbers, following)
  local open, requested = { rated = {} }, request.lanes
  if #numbers == 0 then
    return open
  end
  local pauses, seen = is_restricted and read_pauses() or {}, find_empty_lanes(numbers)
  for i, number in ipairs(numbers) do
    local queue, name = requested[3 * i - 1], requested[3 * i]
    if number and not seen[number] and not pauses[queue] then
      seen[number] = true
      local limits = is_restricted and list_lane_limits(queue, name) or NO_LIMITS
      for _, limit in ipairs(limits) do
        if limit[LIMIT_RATE] then
          push_pair(open.rated, number, limit)
        end
      end
      if #limits == 0 or not find_full(limits) then
        local options, last = request.queues[queue], following[number]
        push(open, {
          place = i, number = number, queue = queue, name = name, limits = limits, members = {}, at = 1,
          is_keyed = is_restricted and may_park(name), following = last, has_more = last ~= nil,
          low = '[' .. number, high = last and '(' .. last or range_end(number), priority = options and options[QUEUE_PRIORITY] or 0,
        })
      end
    end
  end
  return open
end

-- Choose from a single lane: take its first members.
local function choose_from_lane(lane, capacity)
  if capacity <= 0 then
    read_more(lane, 1)
    return {}
  end
  read_more(lane, capacity + 1)
  local chosen = {}
  for i = 1, math.min(capacity, #lane.members) do
    chosen[i] = lane.members[i]
  end
  lane.at = #chosen + 1
  return chosen
end

local function choose_jobs(lanes, request)
  local total, caps = request.total, {}
  if #lanes == 0 then
    return {}
  end
  for queue, options in pairs(request.queues) do
    caps[queue] = options[QUEUE_MOST] or nil
  end
  local has_turns = total > 0 and any_turns()
  if #lanes == 1 and not has_turns and not lanes[1].is_keyed then
    local lane = lanes[1]
    local most = math.max(0, math.min(total, caps[lane.queue] or total))
    if #lane.limits == 0 then
      return choose_from_lane(lane, most)
    end
    local chosen = choose_from_lane(lane, count_lane_room(lane, most))
    take_in_lane(lane, #chosen)
    return chosen
  end
  if total <= 0 then
    for _, lane in ipairs(lanes) do
      read_more(lane, 1)
    end
    return {}
  end
  return plan_reserve(lanes, has_turns, total, request.ageing, caps)
end

-- Return the indexes, in the request, of lanes that hold more jobs and whose limits have room.
local function find_waiting_lanes(lanes)
  local found, may_have_turns = {}, any_turns()
  for _, lane in ipairs(lanes) do
    if #found >= MAX_WAITING_LANES then
      break
    end
    local open = #lane.limits == 0 or not find_full(lane.limits)
    if open and (lane.has_more or lane.members[lane.at] or read_more(lane, 1) or may_have_turns and has_turns(lane.number)) then
      push(found, lane.place)
    end
  end
  return found
end
