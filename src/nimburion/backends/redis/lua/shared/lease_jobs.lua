-- Shared part of exchange: leases the chosen jobs.
-- Keys: job payload attempt_state ready lease session_leases run_order
-- Provides: lease_jobs(session4, number8, nonce, chosen, lanes, most) -> deliveries, bodies, durable runs (see small_runs.lua) or nil
--   read_bodies(fields, most) -> how many of these jobs fit in a reply, bodies, the bytes that the reply has left
-- Cost: O(log n) per job, for n waiting jobs.

-- As in core/exchange.py
local DELIVERY_OVERHEAD = 256

-- Return the bytes of the delivery of a job with flags: payload, options and a constant for the rest.
local function get_delivery_size(body, flags)
  local size = DELIVERY_OVERHEAD
  if band(flags, FLAG_OPTIONS) ~= 0 then
    size = size + (unpack_struct('>I4', body, JOB_ID + byte(body, JOB_ID_LENGTH)))
  end
  local head_end = find_head_end(body)
  return size + (has_flag(body, FLAG_LARGE_PAYLOAD) and (unpack_struct('>I4', body, head_end + 1)) or #body - head_end)
end

-- Return the bodies of jobs; those of jobs with limits by key were read before.
local function read_jobs(fields)
  if not next(choice.bodies) then
    return get_in_batches(job_key, fields)
  end
  local bodies, unknown = {}, {}
  for i, field in ipairs(fields) do
    bodies[i] = choice.bodies[field]
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

-- Return how many of these jobs fit in a reply of `most` bytes (at least one), their bodies, each with its payload, and the bytes that are left.
local function read_bodies(fields, most)
  local bodies = read_jobs(fields)
  for i = 1, #fields do
    local body = bodies[i]
    local flags = byte(body, JOB_FLAGS)
    if flags <= FLAG_OPTIONS then -- It has no unique key and no large payload. The length of options, if there are any, has 4 bytes.
      most = most - DELIVERY_OVERHEAD - #body + JOB_ID_LENGTH + byte(body, JOB_ID_LENGTH) + 4 * flags
    else
      most = most - get_delivery_size(body, flags)
    end
    if most < 0 and i > 1 then
      return i - 1, bodies, 0
    end
    if band(flags, FLAG_LARGE_PAYLOAD) ~= 0 then
      bodies[i] = sub(body, 1, find_head_end(body)) .. redis.call('HGET', payload_key, fields[i])
    end
  end
  return #fields, bodies, most
end

-- Drop the jobs that do not fit in the reply; they stay in their lanes.
local function cut_reply(count, chosen, bodies, lanes)
  for i = #chosen, count + 1, -1 do
    local lane4 = read_ready(chosen[i])
    for _, lane in ipairs(lanes) do
      if lane.number == lane4 then
        lane.has_more = true
        if #lane.limits > 0 then
          take_in_lane(lane, -1)
        end
      end
    end
    local limits = choice.limits[sub(chosen[i], READY_SEQ)]
    if limits then
      take_back(limits)
    end
    local turn = choice.turns[sub(chosen[i], READY_SEQ)]
    if turn then
      undo_charge(turn)
    end
    chosen[i], bodies[i] = nil, nil
  end
end

-- Lease jobs that were not leased before and have no limit for which they may be parked, and no turn. `first_lease` precedes the index.
local function lease_plain_jobs(chosen, fields, count, first_lease, first_counts)
  local leases, details, lane4, lane = {}, {}, nil, nil
  for i = 1, count do
    local member = chosen[i]
    if sub(member, 1, READY_LANE_END) ~= lane4 then
      lane4 = sub(member, 1, READY_LANE_END)
      lane = get_lane(lane4)
    end
    lane[PENDING], lane[LEASED] = lane[PENDING] - 1, lane[LEASED] + 1
    push_pair(leases, fields[i], first_lease .. pack_struct('>I2', i) .. member)
    details[i] = sub(member, READY_DUE) .. first_counts
  end
  return leases, details
end

-- Return the attempt states of those of these jobs that were leased before, by place. Suspended runs have some too, so there may be many
-- while no waiting job has one.
local function read_states(fields)
  local states = {}
  if redis.call('HLEN', attempt_state_key) > 0 then
    for i, state in ipairs(get_in_batches(attempt_state_key, fields)) do
      states[i] = state or nil
    end
  end
  return states
end

-- Lease the chosen jobs to a session. Return the deliveries (see exchange.lua), the bodies and the durable runs.
local function lease_jobs(session4, number8, nonce, chosen, lanes, most)
  if #chosen == 0 then
    return '', {}
  end
  local fields = {}
  for i, member in ipairs(chosen) do
    fields[i] = sub(member, READY_SEQ)
  end
  local count, bodies, left = read_bodies(fields, most)
  cut_reply(count, chosen, bodies, lanes)
  local states = read_states(fields)
  -- The parts of a lease that are the same for all jobs: see record_format.lua.
  local after_fence = nonce .. number8 .. now8 .. NO_CANCEL
  local first_lease, first_counts = session4 .. FIRST_FENCE .. after_fence .. NO_COUNTS, FIRST_FENCE .. NO_COUNTS
  local details, leases, members, dropped_states, ready, places = {}, {}, {}, {}, {}, {}
  if not (next(choice.limits) or next(choice.turns) or next(states)) then
    leases, details = lease_plain_jobs(chosen, fields, count, first_lease, first_counts)
    ready = chosen
  else
    for i = 1, count do
      local member, field = chosen[i], fields[i]
      local lane, index2, code = get_lane(sub(member, 1, READY_LANE_END)), pack_struct('>I2', i), PENDING
      local due8_and_seq8, limits, turn, extras = sub(member, READY_DUE), choice.limits[field], choice.turns[field], ''
      if turn then
        local tenant, charge = turn[1][GROUP_SHARE][SHARE_TENANT], turn[3]
        extras = pack_struct('>I8I2c0', charge, #tenant, tenant) .. (limits and pack_names(limits) or '')
      else
        push(ready, member)
        extras = limits and NEVER .. pack_names(limits) or ''
      end
      if states[i] then
        local attempts = read_attempt_state(states[i])
        local fence4, counts = pack_struct('>I4', unpack_struct('>I4', attempts.fence4) + 1), attempts.counts
        push_pair(leases, field, session4 .. fence4 .. after_fence .. counts .. index2 .. member .. attempts.settled .. extras)
        details[i] = due8_and_seq8 .. fence4 .. counts
        push(dropped_states, field)
        push(places, i)
        code = has_failures(counts) and RETRYING or PENDING
      else
        push_pair(leases, field, extras == '' and first_lease .. index2 .. member or first_lease .. index2 .. member .. NO_TOKEN .. extras)
        details[i] = due8_and_seq8 .. first_counts
      end
      lane[code], lane[LEASED] = lane[code] - 1, lane[LEASED] + 1
    end
  end
  -- The last member first: a small sorted set is a list, which the server reads from its beginning for each new member.
  for i = count, 1, -1 do
    push_pair(members, 0, session4 .. fields[i])
  end
  call_in_batches('ZREM', ready_key, ready)
  call_in_batches('HSET', lease_key, leases)
  call_in_batches('ZADD', session_leases_key, members)
  call_in_batches('HDEL', attempt_state_key, dropped_states)
  local has_runs = #places > 0 and redis.call('EXISTS', run_order_key) == 1
  return table.concat(details), bodies, has_runs and read_small_runs(fields, places, left) or nil
end
