-- Shared part of exchange: chooses and leases jobs, in the exact order that the contract prescribes (docs/decisions/0001).
-- Keys: job payload attempt_state ready lease session_leases lane_number concurrency_limit limit_in_use
-- Provides: read_request(packed)
--   find_open_lanes(request, changing) -> the lanes of the request that can be reserved from
--   choose_jobs(lanes, request) -> members of `ready`, in order
--   lease_jobs(...) leases them
--   find_waiting_lanes(lanes) -> the indexes, in the request, of lanes with more jobs
-- The request is a MessagePack array:
--   1 total: the maximum number of jobs
--   2 ageing: microseconds of waiting that raise a job by one level; 0: no ageing
--   3 lanes: {full lane name, queue, job name, ...}
--   4 queues: {queue: {priority, limit or false}}
--   5 waits_on_stream: whether the next exchange waits on the wake-up streams (see notify.lua)
--   6 max_bytes: the maximum bytes of the reply
-- Cost: O(log n) per job, for n waiting jobs; O(log k) more per job for k lanes.
local MAX_WAITING_LANES = 64
-- MAX_PARKED in core/keyed_limits.py
local MAX_PARKED = 1000
-- DELIVERY_OVERHEAD in core/exchange.py
local OVERHEAD = 256
-- How many jobs with limits by key are read at a time, at least; fewer if fewer wait.
local MIN_CANDIDATES = 16
-- Positions of the options of a queue in a request.
local QUEUE_PRIORITY, QUEUE_LIMIT = 1, 2

-- Return the fields of a request; exchange.py encodes them in this order.
local function read_request(packed)
  local values = cmsgpack.unpack(packed)
  return {
    total = values[1], ageing = values[2], lanes = values[3], queues = values[4], waits_on_stream = values[5], max_bytes = values[6],
  }
end

-- Return how many more jobs of a name its limits allow; nil if it has none.
local function get_capacity(name, capacities)
  if capacities[name] == nil then
    local maximum, rate = redis.call('HGET', concurrency_limit_key, name), get_rate(name)
    local capacity = maximum
      and math.max(0, tonumber(maximum) - tonumber(redis.call('HGET', limit_in_use_key, name) or 0) - get_net_change(name))
    if rate then
      capacity = math.min(capacity or rate.burst, count_room(rate))
    end
    capacities[name] = capacity or false
  end
  return capacities[name] or nil
end

-- Return the requested lanes that exist, are not paused and are below their limit. `capacities`: what the limits still allow.
-- Jobs of the lanes `changing` still return to them, so that no job is reserved before another that comes before it; they wait.
local function find_open_lanes(request, changing)
  local fulls, open, requested = {}, { rated = {}, changing = {} }, request.lanes
  for i = 1, #requested, 3 do
    push(fulls, requested[i])
  end
  if #fulls == 0 then
    return open
  end
  local pauses = read_pauses()
  local is_limited = redis.call('HLEN', concurrency_limit_key) > 0 or has_rates()
  local capacities, seen = {}, {}
  for first = 1, #fulls, 1000 do
    local last = math.min(first + 999, #fulls)
    local numbers = redis.call('HMGET', lane_number_key, unpack(fulls, first, last))
    for i = first, last do
      local number, queue, name = numbers[i - first + 1], requested[3 * i - 1], requested[3 * i]
      if number and not seen[number] and not pauses[queue] then
        seen[number] = true
        local capacity = is_limited and get_capacity(name, capacities) or nil
        if capacity and get_rate(name) then
          push_pair(open.rated, number, name)
        end
        if changing[number] then
          push(open.changing, i)
        elseif capacity ~= 0 then
          local options = request.queues[queue]
          push(open, {
            place = i, number = number, queue = queue, name = name, is_limited = capacity ~= nil, members = {}, at = 1,
            is_keyed = get_keyed_limits(queue, name) ~= nil,
            low = '[' .. number, high = range_end(number), priority = options and options[QUEUE_PRIORITY] or 0,
          })
        end
      end
    end
  end
  open.capacities = capacities
  return open
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

-- Set the sort keys of a lane's head: level (higher first), then rank, due, seq (lower first). Return false if the lane is empty.
local function rank_head(lane, ageing)
  local member = lane.members[lane.at]
  if not member then
    if not read_more(lane, math.min(2 * lane.chunk, MAX_PARKED)) then
      return false
    end
    member = lane.members[1]
  end
  local due = decode_time(member, READY_DUE)
  lane.level = lane.priority
  if ageing > 0 and now > due then
    lane.level = lane.level + math.floor((now - due) / ageing)
  end
  lane.rank, lane.due = byte(member, READY_RANK), due
  lane.seq = unpack_struct('>I8', member, READY_SEQ)
  return true
end

local function is_before(lane, other)
  if lane.level ~= other.level then
    return lane.level > other.level
  end
  if lane.rank ~= other.rank then
    return lane.rank < other.rank
  end
  if lane.due ~= other.due then
    return lane.due < other.due
  end
  return lane.seq < other.seq
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

-- Read jobs of a lane, and what is in use of their keys, with two commands. `members` of `ready`: at most `most`, from `first` on.
local known_bodies, known_keys = {}, {}

local function read_candidates(lane, members, first, most)
  local fields, names = {}, {}
  for i = first, math.min(first + most - 1, #members) do
    push(fields, sub(members[i], READY_SEQ))
  end
  local bodies = get_in_batches(job_key, fields)
  for i = 1, #fields do
    local keys = list_job_keys(lane, bodies[i])
    known_bodies[fields[i]], known_keys[fields[i]] = bodies[i], keys
    for j = 1, #keys do
      push(names, keys[j][KEY_NAME])
    end
  end
  read_uses(names)
end

-- Count a job for its keys, or park it if one of them has no room and return false.
-- `group` is that of the tenant whose turn is next, or nil.
local chosen_keys, chosen_turns, parked_count, has_returned = {}, {}, 0, false

local function admit(member, lane, missing, group)
  local field = sub(member, READY_SEQ)
  if not known_keys[field] then
    local members, first = lane.members, lane.at
    if group then
      members, first = { member }, 1
      for i = 1, math.min(#lane.turns, missing) do
        push(members, lane.number .. '.' .. (lane.turns[i][GROUP_PLACE] or group[GROUP_PLACE]))
      end
    end
    read_candidates(lane, members, first, math.max(missing, MIN_CANDIDATES))
  end
  local keys = known_keys[field]
  local full = find_full_key(keys)
  if full then
    has_returned, parked_count = park(member, keys, full, group), parked_count + 1
    return false
  end
  if #keys > 0 then
    count_keys(keys)
    chosen_keys[field] = keys
  end
  return true
end

-- Return whether the exchange reserves no more: it parked too many jobs, or a lane got jobs back.
local function must_stop()
  return has_returned or parked_count >= MAX_PARKED
end

-- Choose from a single lane whose jobs have limits by key.
local function choose_from_keyed_lane(lane, capacity)
  local chosen = {}
  read_more(lane, capacity + 1)
  while #chosen < capacity and (lane.members[lane.at] or read_more(lane, math.max(2 * (capacity - #chosen), MIN_CANDIDATES))) do
    local member = lane.members[lane.at]
    if admit(member, lane, capacity - #chosen) then
      push(chosen, member)
    elseif must_stop() then
      lane.has_more = true
    end
    lane.at = lane.at + 1
    if lane.has_more then
      break
    end
  end
  return chosen
end

-- --- the turns of tenants: those of all lanes of a queue are together one more lane ---

-- Find the group whose turn is next in a queue, and set the sort keys of its lane. Return false if there is none.
local function rank_turns(turn_lane, ageing, capacities, missing)
  turn_lane.group = nil
  for _, lane in ipairs(turn_lane.lanes) do
    local capacity = capacities[lane.name]
    local group = not (capacity and capacity <= 0) and peek_turn(lane, missing)
    if group and (not turn_lane.group or is_turn_before(group, turn_lane.group)) then
      turn_lane.group, turn_lane.source = group, lane
    end
  end
  local group = turn_lane.group
  if not group then
    return false
  end
  turn_lane.level = turn_lane.priority
  if ageing > 0 and now > group[GROUP_KEY_DUE] then
    turn_lane.level = turn_lane.level + math.floor((now - group[GROUP_KEY_DUE]) / ageing)
  end
  turn_lane.rank, turn_lane.due, turn_lane.seq = group[GROUP_KEY_RANK], group[GROUP_KEY_DUE], group[GROUP_KEY_SEQ]
  return true
end

-- Return one more lane for each queue whose tenants may have waiting jobs.
local function make_turn_lanes(lanes)
  local found, by_queue = {}, {}
  if #turns.shares == 0 and redis.call('ZCARD', tenant_turn_key) == 0 then
    return found
  end
  for _, lane in ipairs(lanes) do
    local turn_lane = by_queue[lane.queue]
    if not turn_lane then
      turn_lane = { queue = lane.queue, priority = lane.priority, lanes = {} }
      by_queue[lane.queue] = turn_lane
      push(found, turn_lane)
    end
    push(turn_lane.lanes, lane)
  end
  return found
end

-- Reserve the job whose turn is next, or park it and return nil.
local function take_turn(turn_lane, missing)
  local group, lane = turn_lane.group, turn_lane.source
  local member = lane.number .. group[GROUP_SHARE][SHARE_CLASS].rank .. group[GROUP_PLACE]
  if lane.is_keyed and not admit(member, lane, missing, group) then
    return nil
  end
  chosen_turns[sub(member, READY_SEQ)] = charge_tenant(group)
  return member
end

-- Reserve or park the first job of a lane. Return its member of `ready` if it is reserved.
local function take_head(lane, missing)
  if lane.lanes then
    return take_turn(lane, missing)
  end
  local member = lane.members[lane.at]
  local is_admitted = not lane.is_keyed or admit(member, lane, missing)
  lane.at = lane.at + 1
  return is_admitted and member or nil
end

-- Choose from several lanes: repeatedly take the best head. A heap holds the lanes, the one with the best head at its top.
local function merge_lanes(lanes, turn_lanes, total, ageing, caps, capacities)
  local heap, count, chosen = {}, 0, {}
  local taken = 0 -- jobs of names with a limit: the turns must be ranked again after each
  local share = math.min(total, math.floor(total / #lanes) + 2)
  for _, lane in ipairs(lanes) do
    lane.chunk = share
    if read_more(lane, share) and rank_head(lane, ageing) then
      count = count + 1
      heap[count] = lane
    end
  end
  for _, lane in ipairs(turn_lanes) do
    if rank_turns(lane, ageing, capacities, total) then
      count = count + 1
      heap[count] = lane
    end
  end
  for at = math.floor(count / 2), 1, -1 do
    sift_down(heap, at, count, is_before)
  end
  while count > 0 and #chosen < total do
    local lane = heap[1]
    local cap, capacity = caps[lane.queue], capacities[lane.name]
    local more = false
    if not (cap and cap <= 0) and not (capacity and capacity <= 0) then
      local seq, missing = lane.seq, total - #chosen
      if lane.lanes and lane.ranked_at ~= taken
        and not (rank_turns(lane, ageing, capacities, missing) and lane.seq == seq) then
        more = lane.group ~= nil -- the name of the job has reached its limit meanwhile
      else
        local name = lane.lanes and lane.source.name or lane.name
        local member = take_head(lane, missing)
        if member then
          chosen[#chosen + 1] = member
          if cap then
            caps[lane.queue] = cap - 1
          end
          if capacities[name] then
            capacities[name], taken = capacities[name] - 1, taken + 1
          end
        elseif must_stop() then
          lane.has_more = true
          break
        end
        if lane.lanes then
          more = #chosen < total and rank_turns(lane, ageing, capacities, total - #chosen)
          lane.ranked_at = taken
        else
          more = rank_head(lane, ageing)
        end
      end
    end
    if not more then
      heap[1] = heap[count]
      heap[count] = nil
      count = count - 1
    end
    if count > 1 then
      sift_down(heap, 1, count, is_before)
    end
  end
  return chosen
end

local function choose_jobs(lanes, request)
  local total, caps = request.total, {}
  if #lanes == 0 then
    return {}
  end
  for queue, options in pairs(request.queues) do
    caps[queue] = options[QUEUE_LIMIT] or nil
  end
  local turn_lanes = total > 0 and make_turn_lanes(lanes) or {}
  if #lanes == 1 and #turn_lanes == 0 then
    local lane = lanes[1]
    local capacity = math.max(0, math.min(total, caps[lane.queue] or total, lanes.capacities[lane.name] or total))
    local chosen = (lane.is_keyed and choose_from_keyed_lane or choose_from_lane)(lane, capacity)
    write_parked()
    if lane.is_limited then
      lanes.capacities[lane.name] = lanes.capacities[lane.name] - #chosen
    end
    return chosen
  end
  if total <= 0 then
    for _, lane in ipairs(lanes) do
      read_more(lane, 1)
    end
    return {}
  end
  local chosen = merge_lanes(lanes, turn_lanes, total, request.ageing, caps, lanes.capacities)
  write_parked()
  return chosen
end

-- Return whether a lane holds jobs now.
local function holds_jobs(number)
  return #redis.call('ZRANGEBYLEX', ready_key, '[' .. number, range_end(number), 'LIMIT', 0, 1) > 0 or has_turns(number)
end

-- Return the indexes, in the request, of lanes that hold more jobs and are below their limit. A lane that got jobs back is read again.
local function find_waiting_lanes(lanes)
  local found, any_turns = lanes.changing, redis.call('ZCARD', tenant_turn_key) > 0
  for _, lane in ipairs(lanes) do
    if #found >= MAX_WAITING_LANES then
      break
    end
    local open = not lane.is_limited or lanes.capacities[lane.name] > 0
    if open and (lane.has_more or lane.members[lane.at] or read_more(lane, 1) or any_turns and has_turns(lane.number)
      or has_returned and holds_jobs(lane.number)) then
      push(found, lane.place)
    end
  end
  return found
end

-- Return the time at which the first rate limit that delays a job of these lanes allows one, or nil.
local function find_next_opening(rated)
  local first
  for i = 1, #rated, 2 do
    local number, rate = rated[i], get_rate(rated[i + 1])
    local opening = count_room(rate) == 0 and find_opening(rate)
    if opening and (not first or opening < first) and holds_jobs(number) then
      first = opening
    end
  end
  return first
end

-- Return the bytes of a delivery: payload, options and a constant for the rest. The first case is the common one: a job without
-- options, without a unique key and without a large payload.
local function get_delivery_size(body)
  local flags, id_end = byte(body, JOB_FLAGS), JOB_ID_LENGTH + byte(body, JOB_ID_LENGTH)
  if flags == 0 then
    return OVERHEAD + #body - id_end
  end
  local size = OVERHEAD
  if band(flags, FLAG_OPTIONS) ~= 0 then
    size = size + (unpack_struct('>I4', body, id_end + 1))
  end
  local head_end = find_head_end(body)
  return size + (has_flag(body, FLAG_LARGE_PAYLOAD) and (unpack_struct('>I4', body, head_end + 1)) or #body - head_end)
end

-- Return the bodies of jobs; those of jobs with limits by key were read before.
local function read_jobs(fields)
  if not next(known_bodies) then
    return get_in_batches(job_key, fields)
  end
  local bodies, unknown = {}, {}
  for i, field in ipairs(fields) do
    bodies[i] = known_bodies[field]
    if not bodies[i] then
      push(unknown, field)
    end
  end
  local read, at = get_in_batches(job_key, unknown), 0
  for i = 1, #fields do
    if not bodies[i] then
      at = at + 1
      bodies[i] = read[at]
    end
  end
  return bodies
end

-- Return how many of these jobs fit in a reply of `most` bytes (at least one), and their bodies, each with its payload.
local function read_bodies(fields, most)
  local bodies = read_jobs(fields)
  for i = 1, #fields do
    local body = bodies[i]
    most = most - get_delivery_size(body)
    if most < 0 and i > 1 then
      return i - 1, bodies
    end
    if has_flag(body, FLAG_LARGE_PAYLOAD) then
      bodies[i] = sub(body, 1, find_head_end(body)) .. redis.call('HGET', payload_key, fields[i])
    end
  end
  return #fields, bodies
end

-- Drop the jobs that do not fit in the reply; they stay in their lanes.
local function cut_reply(count, chosen, bodies, lanes)
  for i = #chosen, count + 1, -1 do
    local lane4 = read_ready(chosen[i])
    for _, lane in ipairs(lanes) do
      if lane.number == lane4 then
        lane.has_more = true
        if lane.is_limited then
          lanes.capacities[lane.name] = lanes.capacities[lane.name] + 1
        end
      end
    end
    local keys = chosen_keys[sub(chosen[i], READY_SEQ)]
    if keys then
      take_back(keys)
    end
    local turn = chosen_turns[sub(chosen[i], READY_SEQ)]
    if turn then
      undo_charge(turn)
    end
    chosen[i], bodies[i] = nil, nil
  end
end

-- Lease the chosen jobs to a session. Return the deliveries (see exchange.lua) and the bodies.
local function lease_jobs(session4, number8, nonce, chosen, lanes, most)
  if #chosen == 0 then
    return '', {}
  end
  local fields = {}
  for i, member in ipairs(chosen) do
    fields[i] = sub(member, READY_SEQ)
  end
  local count, bodies = read_bodies(fields, most)
  cut_reply(count, chosen, bodies, lanes)
  local states = redis.call('HLEN', attempt_state_key) > 0 and get_in_batches(attempt_state_key, fields) or {}
  -- The parts of a lease that are the same for all jobs: see record_format.lua.
  local after_fence = nonce .. number8 .. now8 .. NO_CANCEL
  local first_lease, first_counts = session4 .. FIRST_FENCE .. after_fence .. NO_COUNTS, FIRST_FENCE .. NO_COUNTS
  local details, leases, members, dropped_states, ready = {}, {}, {}, {}, {}
  local is_rated = #lanes.rated > 0
  for i = 1, count do
    local member, field = chosen[i], fields[i]
    local lane, index2, code = get_lane(sub(member, 1, READY_LANE_END)), pack_struct('>I2', i), PENDING
    local due8_and_seq8, keys, turn, extras = sub(member, READY_DUE), chosen_keys[field], chosen_turns[field], ''
    if turn then
      local group, place, charge = turn[1], turn[2], turn[3]
      local tenant = group[GROUP_SHARE][SHARE_TENANT]
      push(turns.dropped, group[GROUP_BEFORE_PLACE] .. place)
      extras = pack_struct('>I8I2c0', charge, #tenant, tenant) .. (keys and pack_names(keys) or '')
    else
      push(ready, member)
      extras = keys and NEVER .. pack_names(keys) or ''
    end
    if states[i] then
      local attempts = read_attempt_state(states[i])
      local fence4, counts = pack_struct('>I4', unpack_struct('>I4', attempts.fence4) + 1), attempts.counts
      push_pair(leases, field, session4 .. fence4 .. after_fence .. counts .. index2 .. member .. attempts.settled .. extras)
      details[i] = due8_and_seq8 .. fence4 .. counts
      push(dropped_states, field)
      code = has_failures(counts) and RETRYING or PENDING
    else
      push_pair(leases, field, extras == '' and first_lease .. index2 .. member or first_lease .. index2 .. member .. NO_TOKEN .. extras)
      details[i] = due8_and_seq8 .. first_counts
    end
    lane[code], lane[LEASED] = lane[code] - 1, lane[LEASED] + 1
    local rate = is_rated and get_rate(lane.name)
    if rate then
      spend_units(rate, rate.cost)
    end
    push_pair(members, 0, session4 .. field)
  end
  call_in_batches('ZREM', ready_key, ready)
  call_in_batches('HSET', lease_key, leases)
  call_in_batches('ZADD', session_leases_key, members)
  call_in_batches('HDEL', attempt_state_key, dropped_states)
  return table.concat(details), bodies
end
