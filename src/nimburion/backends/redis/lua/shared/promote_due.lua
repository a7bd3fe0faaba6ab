-- Part of exchange and promote: put what became due into the line.
-- Keys: scheduled ready
-- Inputs: the most to move
-- Result: promote(most) -> how many, earliest due first; get_next_due() -> 8 bytes or ''
-- Atomic: part of its script. A member of due says all that its place in the line needs.
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
