-- Shared part of exchange and promote: moves due jobs from `scheduled` to `ready`.
-- Keys: scheduled ready
-- Provides: promote_due(most) -> number of jobs moved, earliest due time first; get_next_due() -> due time 8, or ''
-- A member of `scheduled` holds all that the member of `ready` needs, so the job itself is not read.
-- Cost: O(log n) per job, for n waiting jobs.
local function promote_due(most)
  local members = redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, most)
  if #members == 0 then
    return 0
  end
  local places = {}
  for i, member in ipairs(members) do
    local number = string.sub(member, 17, 20)
    places[2 * i - 1], places[2 * i] = 0, string.sub(member, 17, 21) .. string.sub(member, 1, 16)
    local lane = get_lane(number)
    if string.byte(member, 22) == 84 then -- T
      lane.T, lane.R = lane.T - 1, lane.R + 1
    else
      lane.S, lane.P = lane.S - 1, lane.P + 1
    end
  end
  redis.call('ZREM', scheduled_key, unpack(members))
  redis.call('ZADD', ready_key, unpack(places))
  return #members
end

local function get_next_due()
  local first = redis.call('ZRANGE', scheduled_key, 0, 0)[1]
  return first and string.sub(first, 1, 8) or ''
end
