-- Shared part: the lanes that a script meets, and the changes of their job counts.
-- Keys: lane_name limit_in_use lane_counts concurrency_limit
-- Provides: get_lane(number) -> {number, full, queue, name, and per code the change of its count}
--   write_lane_counts(): writes all changes
-- Cost: one HGET per lane, and one HINCRBY per count that changes.
local known_lanes, lane_codes = {}, { 'P', 'S', 'R', 'T', 'L', 'C', 'F', 'X' }

local function get_lane(number)
  local lane = known_lanes[number]
  if not lane then
    local full = redis.call('HGET', lane_name_key, number)
    local cut = string.find(full, '\0', 1, true)
    lane = {
      number = number, full = full, queue = string.sub(full, 1, cut - 1), name = string.sub(full, cut + 1),
      P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0,
    }
    known_lanes[number] = lane
  end
  return lane
end

-- Return the change, so far in this script, of the number of leased jobs of a name.
local function get_net_change(name)
  local net = 0
  for _, lane in pairs(known_lanes) do
    if lane.name == name then
      net = net + lane.L
    end
  end
  return net
end

-- Add the changes to the counts of the lanes and to the leased jobs of each name. If a full limit has capacity again, notify every
-- queue: a worker that waits for this name may be idle on any queue.
local function write_lane_counts()
  local running = {}
  for number, lane in pairs(known_lanes) do
    for _, code in ipairs(lane_codes) do
      local by = lane[code]
      if by ~= 0 then
        redis.call('HINCRBY', lane_counts_key, number .. code, by)
        if code == 'L' then
          running[lane.name] = (running[lane.name] or 0) + by
        end
        lane[code] = 0
      end
    end
  end
  for name, by in pairs(running) do
    if by ~= 0 then
      local held = redis.call('HINCRBY', limit_in_use_key, name, by)
      if by < 0 then
        local maximum = redis.call('HGET', concurrency_limit_key, name)
        if maximum and held < tonumber(maximum) and held - by >= tonumber(maximum) then
          mark_every_queue()
        end
      end
    end
  end
end
