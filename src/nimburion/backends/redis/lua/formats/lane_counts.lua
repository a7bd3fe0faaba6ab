-- Shared part: the lanes that a script meets, and the changes of their job counts.
-- Keys: lane_name lane_counts
-- Provides: get_lane(number) -> {number, full, queue, name, and per code the change of its count}. `counted`: what of
--     the change of its leased jobs is counted in the limits of its name
--   write_lane_counts(): writes all changes
--   may_have_limits: false if no job name has limits when the script begins
-- Cost: one HGET per lane that is not in `lane_names`, and one HINCRBY per count that changes; one HMGET and one HSET if many change.
local known_lanes, may_have_limits = {}, true
local lane_names = {} -- the full names of the lanes that the script has read, by number
local LANE_CODES = { PENDING, SCHEDULED, RETRYING, RETRY_SCHEDULED, LEASED, SUSPENDED, COMPLETED, FAILED, CANCELLED }

local function make_zero_counts()
  return {
    [PENDING] = 0, [SCHEDULED] = 0, [RETRYING] = 0, [RETRY_SCHEDULED] = 0, [LEASED] = 0,
    [SUSPENDED] = 0, [COMPLETED] = 0, [FAILED] = 0, [CANCELLED] = 0,
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
    lane.counted = 0
    known_lanes[number] = lane
  end
  return lane
end

-- With fewer changes, adding them one by one costs as little as reading and writing all.
local MANY_CHANGES = 8

-- Add the changes to the counts of the lanes.
local function write_lane_counts()
  local fields, changes = {}, {}
  for number, lane in pairs(known_lanes) do
    for _, code in ipairs(LANE_CODES) do
      if lane[code] ~= 0 then
        fields[#fields + 1], changes[#changes + 1] = number .. code, lane[code]
        lane[code] = 0
      end
    end
    lane.counted = 0
  end
  if #fields < MANY_CHANGES then
    for i, field in ipairs(fields) do
      redis.call('HINCRBY', lane_counts_key, field, changes[i])
    end
    return
  end
  local counts, written = get_in_batches(lane_counts_key, fields), {}
  for i, field in ipairs(fields) do
    push_pair(written, field, string.format('%.0f', tonumber(counts[i] or 0) + changes[i]))
  end
  call_in_batches('HSET', lane_counts_key, written)
end
