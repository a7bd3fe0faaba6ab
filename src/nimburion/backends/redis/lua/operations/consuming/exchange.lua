-- exchange: settles attempts, promotes due jobs and reserves jobs, for one worker.
-- Keys: session_state lane_name
-- Arguments:
--   ARGV[3] the id of the session
--   ARGV[4] the number of this exchange, in 8 bytes
--   ARGV[5] the nonce, in 16 bytes. The worker draws it at random for each exchange. The fence and the nonce of a lease form its
--     token.
--   ARGV[6] the request (see reserve.lua)
--   ARGV[7] the settlements (see settle.lua), and ARGV[8...] their other values
-- Reply: {'lost'}: the session is not alive
--   {'order', last number 8}: the number is neither the last one nor the next one
--   {'done', codes, nonce, now 8, next time 8 or '', deliveries, indexes of lanes with more jobs, {lane number, full name, ...},
--   bodies}; a delivery is due 8 | seq 8 | fence 4 | failures 4 | lost 2
-- A repeated number gets the same reply again and changes nothing, except that deliveries too large for the reply are requeued.
-- Atomic: one script. It checks session and number first. No later write can fail.
-- Cost: O(log n) per settlement, promoted job and reserved job, for n waiting jobs.
local session_id, number8, nonce, request, settlements = ARGV[3], ARGV[4], ARGV[5], read_request(ARGV[6]), ARGV[7]
local FIRST_EXTRA = 8
local session = read_open_session(redis.call('HGET', session_state_key, session_id))
if not session then
  return { 'lost' }
end
local session4, last8 = session.session4, session.number8
local codes, deliveries, bodies, lanes

-- Requeue the deliveries that no longer fit in the reply, with their old counts and due times.
local function requeue_rest(found, first)
  for i = first, #found do
    local field, lease = found[i].field, found[i].lease
    local lane = get_lane(lease.lane4)
    give_units_back(lane.name, lease.started8)
    refund_keys(field, lane, lease)
    end_lease(field, lease, lane)
    if lease.is_cancel_requested then
      finish_job(field, redis.call('HGET', job_key, field), lane, CANCELLED, lease)
    else
      requeue(field, lease, lane)
    end
  end
  if first <= #found then
    write_buffer()
    write_lane_counts()
    notify_marked()
  end
end

-- Return the deliveries and bodies of the repeated exchange, from the leases that have its number, in their old order, and the
-- nonce of these leases. A repetition may come with another nonce.
local function repeat_leases()
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4))) do
    local field = string.sub(member, 5)
    local lease = read_lease(redis.call('HGET', lease_key, field))
    if lease.number8 == number8 then
      push(found, { field = field, lease = lease })
    end
  end
  table.sort(found, function(delivered, other) return delivered.lease.index < other.lease.index end)
  local fields, parts = {}, {}
  for i, delivered in ipairs(found) do
    local lease = delivered.lease
    fields[i] = delivered.field
    parts[i] = lease.due8 .. delivered.field .. lease.fence4 .. lease.counts
    get_lane(lease.lane4)
  end
  if #fields == 0 then
    return '', {}, nonce
  end
  local count, found_bodies = read_bodies(fields, request.max_bytes)
  requeue_rest(found, count + 1)
  for i = #found, count + 1, -1 do
    parts[i], found_bodies[i] = nil, nil
  end
  return table.concat(parts), found_bodies, found[1].lease.nonce
end

local is_repeat = number8 == last8 and number8 ~= NO_NUMBER
if is_repeat then
  codes = session.codes
  deliveries, bodies, nonce = repeat_leases()
  lanes = find_open_lanes(request, {})
elseif (struct.unpack('>I8', number8)) ~= (struct.unpack('>I8', last8)) + 1 then
  return { 'order', last8 }
else
  local changing = unpark_changed()
  codes = settle_all(session4, settlements, FIRST_EXTRA)
  promote_due(500)
  unpark_open()
  lanes = find_open_lanes(request, changing)
  deliveries, bodies = lease_jobs(session4, number8, nonce, choose_jobs(lanes, request), lanes, request.max_bytes)
  write_turns()
  session.number8, session.codes = number8, codes
  redis.call('HSET', session_state_key, session_id, make_session_state(session))
  write_lane_counts()
  notify_marked()
end

-- The worker is idle: subscribe its queues to notifications (see notify.lua).
local waiting = find_waiting_lanes(lanes)
if #waiting == 0 and request.total > 0 and not is_repeat then
  local requested, queues = request.lanes, {}
  for i = 2, #requested, 3 do
    queues[requested[i]] = true
  end
  for queue in pairs(queues) do
    redis.call('HSET', notify_key, request.waits_on_stream and queue .. '\0' or queue, '1')
  end
end
write_rates()
write_key_uses()
local lane_names, next_due, opening = {}, get_next_due(), find_next_opening(lanes.rated)
local key_opening = get_next_key_opening()
opening = opening and math.min(opening, key_opening or opening) or key_opening
if opening and (next_due == '' or opening < decode_time(next_due, 1)) then
  next_due = encode_time(opening)
end
for number, lane in pairs(known_lanes) do
  push_pair(lane_names, number, lane.full)
end
return { 'done', codes, nonce, now8, next_due, deliveries, waiting, lane_names, bodies }
