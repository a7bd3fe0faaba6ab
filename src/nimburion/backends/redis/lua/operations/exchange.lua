-- Exchange: settle what is done, promote what became due, reserve what may run.
-- Keys: turn lanes
-- Inputs: ARGV[3] session id, [4] exchange number 8, [5] nonce 16, [6] want (MessagePack, see reserve.lua),
--   [7] settlements (see settle.lua), [8...] what they need besides
-- Result: {'lost'} · {'order', last number} · {'done', letters, nonce, now 8, next due 8 or '', told of the deliveries
--   (due 8 | seq 8 | fence 4 | failures 4 | lost 2 each), places of lanes that hold more, lanes of the deliveries by
--   number, bodies}
-- Atomic: one script. It decides by session and number first; everything it then writes depends on nothing that can fail.
local turn = redis.call('HGET', turn_key, ARGV[3])
if not turn or string.sub(turn, 29, 29) ~= 'a' then
  return { 'lost' }
end
local session4, last8, number8, nonce = string.sub(turn, 1, 4), string.sub(turn, 5, 12), ARGV[4], ARGV[5]
local want = cmsgpack.unpack(ARGV[6])
local letters, told, bodies, lanes

-- What the reply has no room for any more goes back to its place in the line, as it came.
local function give_back(found, first)
  for i = first, #found do
    local field, lease = found[i].field, found[i].lease
    local lane, counts = lane_of(string.sub(lease, 50, 53)), string.sub(lease, 42, 47)
    end_lease(field, lease, lane)
    if string.byte(lease, 41) == 49 then
      finish(field, redis.call('HGET', job_key, field), lane, 'X', past_of(lease, counts))
    else
      wait_again(field, lease, lane, counts)
    end
  end
  if first <= #found then
    write_ledger()
    count_lanes()
    ring()
  end
end

-- The same answer again: the leases of this number, in their places.
local function repeated()
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', held_key, '[' .. session4, after(session4))) do
    local field = string.sub(member, 5)
    local lease = redis.call('HGET', lease_key, field)
    if string.sub(lease, 25, 32) == number8 then
      push(found, { place = struct.unpack('>I2', lease, 48), field = field, lease = lease })
    end
  end
  table.sort(found, function(one, other) return one.place < other.place end)
  local fields, parts = {}, {}
  for i, one in ipairs(found) do
    local lease = one.lease
    fields[i] = one.field
    parts[i] = string.sub(lease, 55, 70) .. string.sub(lease, 5, 8) .. string.sub(lease, 42, 47)
    nonce = string.sub(lease, 9, 24)
    lane_of(string.sub(lease, 50, 53))
  end
  if #fields == 0 then
    return '', {}
  end
  local count, again = bodies_of(fields, want[6])
  give_back(found, count + 1)
  for i = #found, count + 1, -1 do
    parts[i], again[i] = nil, nil
  end
  return table.concat(parts), again
end

if number8 == last8 and number8 ~= '\0\0\0\0\0\0\0\0' then
  letters = string.sub(turn, 38)
  told, bodies = repeated()
  lanes = open_lanes(want)
  want[1] = 0
  choose(lanes, want)
elseif (struct.unpack('>I8', number8)) ~= (struct.unpack('>I8', last8)) + 1 then
  return { 'order', last8 }
else
  letters = settle(session4, ARGV[7], 8)
  promote(500)
  lanes = open_lanes(want)
  told, bodies = hand_out(session4, number8, nonce, choose(lanes, want), lanes, want[6])
  redis.call('HSET', turn_key, ARGV[3], session4 .. number8 .. string.sub(turn, 13, 37) .. letters)
  count_lanes()
  ring()
end

local waiting = waiting_of(lanes)
if #waiting == 0 and want[1] > 0 then
  local asked, armed = want[3], {}
  for i = 2, #asked, 3 do
    armed[asked[i]] = true
  end
  for queue in pairs(armed) do
    redis.call('HSET', bell_key, want[5] and queue .. '\0' or queue, '1')
  end
end
local named = {}
for number, lane in pairs(known_lanes) do
  push_two(named, number, lane.full)
end
return { 'done', letters, nonce, now8, next_due(), told, waiting, named, bodies }
