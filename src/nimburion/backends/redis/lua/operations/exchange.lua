-- exchange: settles attempts, promotes due jobs and reserves jobs, for one worker.
-- Keys: session_state lane_name
-- Arguments: ARGV[3] session id, [4] number of this exchange 8, [5] nonce 16, [6] request (MessagePack, see reserve.lua),
--   [7] settlements (see settle.lua), [8...] their other values
-- Reply: {'lost'}: the session is not alive
--   {'order', last number 8}: the number is neither the last one nor the next one
--   {'done', codes, nonce, now 8, next due time 8 or '', deliveries, indexes of lanes with more jobs, {lane number, full name, ...},
--   bodies}; a delivery is due 8 | seq 8 | fence 4 | failures 4 | lost 2
-- A repeated number gets the same reply again and changes nothing, except that deliveries too large for the reply are requeued.
-- Atomic: one script. It checks session and number first. No later write can fail.
-- Cost: O(log n) per settlement, promoted job and reserved job, for n waiting jobs.
local session_state = redis.call('HGET', session_state_key, ARGV[3])
if not session_state or string.sub(session_state, 29, 29) ~= 'a' then
  return { 'lost' }
end
local session4, last8, number8, nonce = string.sub(session_state, 1, 4), string.sub(session_state, 5, 12), ARGV[4], ARGV[5]
local request = cmsgpack.unpack(ARGV[6])
local codes, details, bodies, lanes

-- Requeue the deliveries that no longer fit in the reply, with their old counts and due times.
local function give_back(found, first)
  for i = first, #found do
    local field, lease = found[i].field, found[i].lease
    local lane, counts = get_lane(string.sub(lease, 50, 53)), string.sub(lease, 42, 47)
    end_lease(field, lease, lane)
    if string.byte(lease, 41) == 49 then
      finish_job(field, redis.call('HGET', job_key, field), lane, 'X', make_end_record(lease, counts))
    else
      requeue(field, lease, lane, counts)
    end
  end
  if first <= #found then
    write_buffer()
    write_lane_counts()
    notify_marked()
  end
end

-- Return the deliveries of the repeated exchange, from the leases that have its number, in their old order.
local function repeat_leases()
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4))) do
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
    get_lane(string.sub(lease, 50, 53))
  end
  if #fields == 0 then
    return '', {}
  end
  local count, again = read_bodies(fields, request[6])
  give_back(found, count + 1)
  for i = #found, count + 1, -1 do
    parts[i], again[i] = nil, nil
  end
  return table.concat(parts), again
end

if number8 == last8 and number8 ~= '\0\0\0\0\0\0\0\0' then
  codes = string.sub(session_state, 38)
  details, bodies = repeat_leases()
  lanes = find_open_lanes(request)
  request[1] = 0
  choose_jobs(lanes, request)
elseif (struct.unpack('>I8', number8)) ~= (struct.unpack('>I8', last8)) + 1 then
  return { 'order', last8 }
else
  codes = settle_all(session4, ARGV[7], 8)
  promote_due(500)
  lanes = find_open_lanes(request)
  details, bodies = lease_jobs(session4, number8, nonce, choose_jobs(lanes, request), lanes, request[6])
  redis.call('HSET', session_state_key, ARGV[3], session4 .. number8 .. string.sub(session_state, 13, 37) .. codes)
  write_lane_counts()
  notify_marked()
end

local waiting = find_waiting_lanes(lanes)
if #waiting == 0 and request[1] > 0 then
  local requested, subscribed = request[3], {}
  for i = 2, #requested, 3 do
    subscribed[requested[i]] = true
  end
  for queue in pairs(subscribed) do
    redis.call('HSET', notify_key, request[5] and queue .. '\0' or queue, '1')
  end
end
local named = {}
for number, lane in pairs(known_lanes) do
  push_pair(named, number, lane.full)
end
return { 'done', codes, nonce, now8, get_next_due(), details, waiting, named, bodies }
