-- Part of scripts that touch jobs of lanes nobody named: what is known of a lane, and how its numbers change.
-- Keys: lanes running count gate
-- Inputs: lane numbers, 4 bytes each
-- Result: lane_of(number) -> {number, full, queue, name, and by letter what is to be added}; count_lanes() writes the sums
local known_lanes, letters_of_lanes = {}, { 'P', 'S', 'R', 'T', 'L', 'C', 'F', 'X' }

local function lane_of(number)
  local lane = known_lanes[number]
  if not lane then
    local full = redis.call('HGET', lanes_key, number)
    local cut = string.find(full, '\0', 1, true)
    lane = {
      number = number, full = full, queue = string.sub(full, 1, cut - 1), name = string.sub(full, cut + 1),
      P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0,
    }
    known_lanes[number] = lane
  end
  return lane
end

-- What is to be added to what runs of a name.
local function net_of(name)
  local net = 0
  for _, lane in pairs(known_lanes) do
    if lane.name == name then
      net = net + lane.L
    end
  end
  return net
end

-- Add what changed to the numbers of the lanes, and to what runs of each name. Where a gate was full and is not any more,
-- every queue is rung: who waits for it may serve another one.
local function count_lanes()
  local running = {}
  for number, lane in pairs(known_lanes) do
    for _, letter in ipairs(letters_of_lanes) do
      local by = lane[letter]
      if by ~= 0 then
        redis.call('HINCRBY', count_key, number .. letter, by)
        if letter == 'L' then
          running[lane.name] = (running[lane.name] or 0) + by
        end
        lane[letter] = 0
      end
    end
  end
  for name, by in pairs(running) do
    if by ~= 0 then
      local held = redis.call('HINCRBY', running_key, name, by)
      if by < 0 then
        local bound = redis.call('HGET', gate_key, name)
        if bound and held < tonumber(bound) and held - by >= tonumber(bound) then
          mark_all()
        end
      end
    end
  end
end
