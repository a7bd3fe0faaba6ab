-- Shared part: the lanes that a script meets, and the changes of their job counts.
-- Keys: lane_name limit_in_use lane_counts concurrency_limit
-- Provides: get_lane(number) -> {number, full, queue, name, and per code the change of its count}
--   write_lane_counts(): writes all changes
-- Cost: one HGET per lane that is not in `lane_names`, and one HINCRBY per count that changes.
local known_lanes = {}
local lane_names = {} -- the full names of the lanes that the script has read, by number
local LANE_CODES = { PENDING, SCHEDULED, RETRYING, RETRY_SCHEDULED, LEASED, COMPLETED, FAILED, CANCELLED }

local function make_zero_counts()
  return {
    [PENDING] = 0, [SCHEDULED] = 0, [RETRYING] = 0, [RETRY_SCHEDULED] = 0, [LEASED] = 0,
    [COMPLETED] = 0, [FAILED] = 0, [CANCELLED] = 0,
  }
end

local function get_lane(number)
  local lane = known_lanes[number]
  if not lane then
    local full = lane_names[number] or redis.call('HGET', lane_name_key, number)
    local cut = string.find(full, '\0', 1, true)
    lane = make_zero_counts()
    lane.number, lane.full = number, full
    lane.queue, lane.name = string.sub(full, 1, cut - 1), string.sub(full, cut + 1)
    known_lanes[number] = lane
  end
  return lane
end

-- Return the change, so far in this script, of the number of leased jobs of a name.
local function get_net_change(name)
  local net = 0
  for _, lane in pairs(known_lanes) do
    if lane.name == name then
      net = net + lane[LEASED]
    end
  end
  return net
end

-- Add the changes to the counts of the lanes and to the leased jobs of each name. If a full limit has capacity again, notify every
-- queue: a worker that waits for this name may be idle on any queue.
local function write_lane_counts()
  local running = {}
  for number, lane in pairs(known_lanes) do
    for _, code in ipairs(LANE_CODES) do
      local by = lane[code]
      if by ~= 0 then
        redis.call('HINCRBY', lane_counts_key, number .. code, by)
        if code == LEASED then
          running[lane.name] = (running[lane.name] or 0) + by
        end
        lane[code] = 0
      end
    end
  end
  for name, by in pairs(running) do
    if by ~= 0 then
      local in_use = redis.call('HINCRBY', limit_in_use_key, name, by)
      if by < 0 then
        local maximum = redis.call('HGET', concurrency_limit_key, name)
        if maximum and in_use < tonumber(maximum) and in_use - by >= tonumber(maximum) then
          mark_every_queue()
        end
      end
    end
  end
end
