-- exchange: settles attempts, promotes due jobs and reserves jobs, for one worker.
-- Keys: session_state lane_name idle_worker meta
-- Arguments:
--   ARGV[3] the id of the session
--   ARGV[4] the number of this exchange, in 8 bytes
--   ARGV[5] the nonce, in 16 bytes. The worker draws it at random for each exchange. The fence and the nonce of a lease form its
--     token.
--   ARGV[6] the request (see reserve_jobs.lua)
--   ARGV[7] the settlements (see settle.lua), and ARGV[8...] their other values
-- Reply: {'lost'}: the session is not alive
--   {'order', last number 8}: the number is neither the last one nor the next one
--   {'done', codes, nonce, now 8, next time 8 or '', deliveries, indexes of lanes with more jobs, {lane number, full name, ...},
--   bodies}; a delivery is due 8 | seq 8 | fence 4 | failures 4 | lost 2. The durable runs follow, if there are any (see small_runs.lua).
-- A repeated number gets the same reply again and changes nothing, except that deliveries too large for the reply are requeued.
-- Atomic: one script. It checks session and number first. No later write can fail.
-- Cost: O(log n) per settlement, promoted job and reserved job, for n waiting jobs.
local session_id, number8, nonce, request, settlements = ARGV[3], ARGV[4], ARGV[5], read_request(ARGV[6]), ARGV[7]
local FIRST_EXTRA = 8
local DUE_WINDOW = 20000000 -- as in core/exchange.py
local session = read_open_session(redis.call('HGET', session_state_key, session_id))
if not session then
  return { 'lost' }
end
local session4, last8 = session.session4, session.number8
local lane_numbers = read_lane_numbers(request)
local codes, deliveries, bodies, runs, lanes, has_left_changes = '', '', {}, nil, nil, false

local is_repeat = number8 == last8 and number8 ~= NO_NUMBER
if is_repeat then
  codes = session.codes
  deliveries, bodies, nonce = repeat_leases(session4, number8, nonce, request.max_bytes)
  lanes = find_open_lanes(request, lane_numbers, {})
elseif (struct.unpack('>I8', number8)) ~= (struct.unpack('>I8', last8)) + 1 then
  return { 'order', last8 }
else
  if is_restricted then
    follow_clock()
  end
  local following = is_restricted and unpark_changed() or {}
  codes = settlements == '' and '' or settle_all(settlements, session4, FIRST_EXTRA)
  has_left_changes = continue_flows(true, is_restricted)
  local _, promoted = promote_due(500)
  if is_restricted then
    unpark_open()
  end
  lanes = find_open_lanes(request, lane_numbers, following)
  local chosen = choose_jobs(lanes, request)
  if #chosen > 0 then
    deliveries, bodies, runs = lease_jobs(session4, number8, nonce, chosen, lanes, request.max_bytes)
  end
  if next(promoted) then
    for _, member in ipairs(chosen) do
      local queue = get_lane(string.sub(member, 1, READY_LANE_END)).queue
      promoted[queue] = (promoted[queue] or 0) - 1
    end
    for queue, left in pairs(promoted) do
      if left > 0 then
        mark_queue(queue, left)
      end
    end
  end
  write_turns()
  session.number8, session.codes = number8, codes
  redis.call('HSET', session_state_key, session_id, make_session_state(session))
  write_uses()
  write_lane_counts()
  notify_marked(request.handle)
end

-- An idle worker leaves its idle entries (see idle_workers.lua). One that is idle no more removes them.
local waiting = find_waiting_lanes(lanes)
if request.total > 0 and request.handle ~= '' and not is_repeat then
  local waits, registered, queues = request.waits_on_stream, request.registered, {}
  local is_idle = #waiting == 0 and (waits and #bodies == 0 or not waits and #bodies < request.free_slots)
  local entry = request.handle .. (waits and 's' or 'c')
  local session_part = '\0' .. session_id .. '\0'
  if is_idle then
    for i = 2, #request.lanes, 3 do
      queues[request.lanes[i]] = true
    end
    for queue in pairs(queues) do
      redis.call('ZADD', idle_worker_key, 0, queue .. session_part .. entry)
    end
  end
  for i = 2, #registered do
    if registered[1] ~= entry or not queues[registered[i]] then
      redis.call('ZREM', idle_worker_key, registered[i] .. session_part .. registered[1])
    end
  end
end

-- Return whether a session has not ended.
local function has_session(id)
  local state = redis.call('HGET', session_state_key, id)
  return state and read_session_state(state).status ~= SESSION_ENDED
end

-- Return whether to report the earliest due time to this session, and note that it was reported. False: another session looks for
-- jobs by then.
local function reports_due(due8)
  local due = decode_time(due8, 1)
  if request.total <= 0 or due - now > DUE_WINDOW then
    return true
  end
  local own, last = due8 .. session_id, redis.call('HGET', meta_key, 'reported_due')
  if last and last ~= own then
    local last_due, other = decode_time(last, 1), string.sub(last, 9)
    if now < last_due and last_due <= due and other ~= session_id and has_session(other) then
      return false
    end
  end
  if last ~= own then
    redis.call('HSET', meta_key, 'reported_due', own)
  end
  return true
end

local delivered_lanes, next_due = {}, get_next_due()
if next_due ~= '' and not reports_due(next_due) then
  next_due = ''
end
local opening = #lanes.rated > 0 and find_next_opening(lanes.rated) or nil
local key_opening = is_restricted and get_next_key_opening() or nil
opening = opening and math.min(opening, key_opening or opening) or key_opening
if opening and (next_due == '' or opening < decode_time(next_due, 1)) then
  next_due = encode_time(opening)
end
if has_left_changes then -- the next exchange continues
  next_due = now8
end
for number, lane in pairs(known_lanes) do
  push_pair(delivered_lanes, number, lane.full)
end
return { 'done', codes, nonce, now8, next_due, deliveries, waiting, delivered_lanes, bodies, runs }
