-- Part of exchange: hand jobs out, in the order of SPEC G15, exactly.
-- Keys: job payload state ready lease held lane paused gate running
-- Inputs: want = {total, ageing in microseconds, [full lane name, queue, name, ...], {queue: {priority, cap or false}},
--   whether the next exchange waits on the streams, the most bytes of deliveries}
-- Result: open_lanes(want) -> what may be served of it; choose(lanes, want) -> members of ready in rank order;
--   hand_out(...) leases them; waiting_of(lanes) -> the places in `want` of lanes that hold more
local WAITING = 64
local OVERHEAD = 256 -- DELIVERY_OVERHEAD in core/exchange.py

-- How many more of a name its gate lets pass; nil where it has none.
local function room_of(name, rooms)
  if rooms[name] == nil then
    local bound = redis.call('HGET', gate_key, name)
    rooms[name] = bound
      and math.max(0, tonumber(bound) - tonumber(redis.call('HGET', running_key, name) or 0) - net_of(name))
      or false
  end
  return rooms[name] or nil
end

-- The lanes asked for that exist and may be served; `room`: what their gate lets pass.
local function open_lanes(want)
  local fulls, open, asked = {}, {}, want[3]
  for i = 1, #asked, 3 do
    push(fulls, asked[i])
  end
  if #fulls == 0 then
    return open
  end
  local paused = redis.call('HLEN', paused_key) > 0
  local gated = redis.call('HLEN', gate_key) > 0
  local rooms, seen = {}, {}
  for first = 1, #fulls, 1000 do
    local last = math.min(first + 999, #fulls)
    local numbers = redis.call('HMGET', lane_key, unpack(fulls, first, last))
    for i = first, last do
      local number, queue, name = numbers[i - first + 1], asked[3 * i - 1], asked[3 * i]
      if number and not seen[number] and not (paused and redis.call('HEXISTS', paused_key, queue) == 1) then
        seen[number] = true
        local room = gated and room_of(name, rooms) or nil
        if room ~= 0 then
          local terms = want[4][queue]
          push(open, {
            place = i, number = number, queue = queue, name = name, gated = room ~= nil, ahead = {}, at = 1,
            low = '[' .. number, high = after(number), priority = terms and terms[1] or 0,
          })
        end
      end
    end
  end
  open.rooms = rooms
  return open
end

-- Read on in a lane; false at its end.
local function read_on(lane, most)
  if lane.ended then
    return false
  end
  lane.ahead = redis.call('ZRANGEBYLEX', ready_key, lane.low, lane.high, 'LIMIT', 0, most)
  lane.at = 1
  local got = #lane.ahead
  lane.ended = got < most
  lane.chunk = most
  if got > 0 then
    lane.low = '(' .. lane.ahead[got]
  end
  return got > 0
end

-- The head of a lane as the merge ranks it: level (higher first), then rank, due, seq (lower first).
local function rank_head(lane, ageing)
  local member = lane.ahead[lane.at]
  if not member then
    if not read_on(lane, 2 * lane.chunk) then
      return false
    end
    member = lane.ahead[1]
  end
  local due = micros8(member, 6)
  lane.level = lane.priority
  if ageing > 0 and now > due then
    lane.level = lane.level + math.floor((now - due) / ageing)
  end
  lane.rank, lane.due = string.byte(member, 5), due
  lane.seq = struct.unpack('>I8', member, 14)
  return true
end

local function before(one, other)
  if one.level ~= other.level then
    return one.level > other.level
  end
  if one.rank ~= other.rank then
    return one.rank < other.rank
  end
  if one.due ~= other.due then
    return one.due < other.due
  end
  return one.seq < other.seq
end

local function sift_down(heap, at, count)
  local lane = heap[at]
  while true do
    local child = 2 * at
    if child > count then
      break
    end
    if child < count and before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not before(heap[child], lane) then
      break
    end
    heap[at] = heap[child]
    at = child
  end
  heap[at] = lane
end

-- One lane: its front is the answer.
local function choose_one(lane, room)
  if room <= 0 then
    read_on(lane, 1)
    return {}
  end
  read_on(lane, room + 1)
  local chosen = {}
  for i = 1, math.min(room, #lane.ahead) do
    chosen[i] = lane.ahead[i]
  end
  lane.at = #chosen + 1
  return chosen
end

-- Several: take the best head, move that lane on, again.
local function merge(lanes, total, ageing, caps, rooms)
  local heap, count, chosen = {}, 0, {}
  local share = math.min(total, math.floor(total / #lanes) + 2)
  for _, lane in ipairs(lanes) do
    lane.chunk = share
    if read_on(lane, share) and rank_head(lane, ageing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for at = math.floor(count / 2), 1, -1 do
    sift_down(heap, at, count)
  end
  while count > 0 and #chosen < total do
    local lane = heap[1]
    local cap, room = caps[lane.queue], rooms[lane.name]
    local more = false
    if not (cap and cap <= 0) and not (room and room <= 0) then
      chosen[#chosen + 1] = lane.ahead[lane.at]
      lane.at = lane.at + 1
      if cap then
        caps[lane.queue] = cap - 1
      end
      if room then
        rooms[lane.name] = room - 1
      end
      more = rank_head(lane, ageing)
    end
    if not more then
      heap[1] = heap[count]
      heap[count] = nil
      count = count - 1
    end
    if count > 1 then
      sift_down(heap, 1, count)
    end
  end
  return chosen
end

local function choose(lanes, want)
  local total, caps = want[1], {}
  if #lanes == 0 then
    return {}
  end
  for queue, terms in pairs(want[4]) do
    caps[queue] = terms[2] or nil
  end
  if #lanes == 1 then
    local lane = lanes[1]
    local room = math.min(total, caps[lane.queue] or total, lanes.rooms[lane.name] or total)
    local chosen = choose_one(lane, room)
    if lane.gated then
      lanes.rooms[lane.name] = lanes.rooms[lane.name] - #chosen
    end
    return chosen
  end
  if total <= 0 then
    for _, lane in ipairs(lanes) do
      read_on(lane, 1)
    end
    return {}
  end
  return merge(lanes, total, want[2], caps, lanes.rooms)
end

-- The lanes that hold more jobs which may be handed out, as their places in the request.
local function waiting_of(lanes)
  local found = {}
  for _, lane in ipairs(lanes) do
    local open = not lane.gated or lanes.rooms[lane.name] > 0
    if open and (lane.left or lane.ahead[lane.at] or read_on(lane, 1)) then
      push(found, lane.place)
      if #found == WAITING then
        break
      end
    end
  end
  return found
end

-- How many bytes a delivery counts: its payload, its options, and what it has beside them. Most jobs have neither options
-- nor a key, and their payload in the body: those are the first case.
local function size_of(body)
  local flags, ends = string.byte(body, 21), 39 + string.byte(body, 39)
  if flags == 0 then
    return OVERHEAD + #body - ends
  end
  local size = OVERHEAD
  if bit.band(flags, OPTIONS) ~= 0 then
    size = size + (struct.unpack('>I4', body, ends + 1))
  end
  ends = head_end(body)
  return size + (has(body, APART) and (struct.unpack('>I4', body, ends + 1)) or #body - ends)
end

-- How many of these jobs fit a reply of so many bytes together, at least one; and their bodies, payloads behind them.
local function bodies_of(fields, most)
  local bodies = gather(job_key, fields)
  for i = 1, #fields do
    local body = bodies[i]
    most = most - size_of(body)
    if most < 0 and i > 1 then
      return i - 1, bodies
    end
    if has(body, APART) then
      bodies[i] = string.sub(body, 1, head_end(body)) .. redis.call('HGET', payload_key, fields[i])
    end
  end
  return #fields, bodies
end

-- What is too much for one reply stays where it is.
local function cut_to(count, chosen, bodies, lanes)
  for i = #chosen, count + 1, -1 do
    local number = string.sub(chosen[i], 1, 4)
    for _, lane in ipairs(lanes) do
      if lane.number == number then
        lane.left = true
        if lane.gated then
          lanes.rooms[lane.name] = lanes.rooms[lane.name] + 1
        end
      end
    end
    chosen[i], bodies[i] = nil, nil
  end
end

-- Lease the chosen to a session; what is told of each, and the bodies.
local function hand_out(session4, number8, nonce, chosen, lanes, most)
  if #chosen == 0 then
    return '', {}
  end
  local fields = {}
  for i, member in ipairs(chosen) do
    fields[i] = string.sub(member, 14, 21)
  end
  local count, bodies = bodies_of(fields, most)
  cut_to(count, chosen, bodies, lanes)
  local states = redis.call('HLEN', state_key) > 0 and gather(state_key, fields) or {}
  local tail = number8 .. now8 .. '0'
  local fresh = session4 .. '\0\0\0\1' .. nonce .. tail .. FRESH
  local told, leases, held, forget = {}, {}, {}, {}
  for i = 1, count do
    local member, field, state = chosen[i], fields[i], states[i]
    local lane = lane_of(string.sub(member, 1, 4))
    local place = struct.pack('>I2', i)
    if state then
      local fence4 = struct.pack('>I4', (struct.unpack('>I4', state, 7)) + 1)
      local counts, settled = string.sub(state, 1, 6), string.sub(state, 27, 46)
      push_two(leases, field, session4 .. fence4 .. nonce .. tail .. counts .. place .. member .. settled)
      told[i] = string.sub(member, 6) .. fence4 .. counts
      push(forget, field)
      local letter = string.sub(counts, 1, 4) == '\0\0\0\0' and 'P' or 'R'
      lane[letter] = lane[letter] - 1
    else
      push_two(leases, field, fresh .. place .. member)
      told[i] = string.sub(member, 6) .. '\0\0\0\1' .. FRESH
      lane.P = lane.P - 1
    end
    lane.L = lane.L + 1
    push_two(held, 0, session4 .. field)
  end
  each_part('ZREM', ready_key, chosen)
  each_part('HSET', lease_key, leases)
  each_part('ZADD', held_key, held)
  each_part('HDEL', state_key, forget)
  return table.concat(told), bodies
end
