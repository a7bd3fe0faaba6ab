-- list_queues: returns the lanes with unfinished jobs, and the paused queues.
-- Keys: lane_name ready parked_lane tenant_turn
-- Reply: {}: promote and call again; or {now 8, rows, {queue, pause, ...}}. A row is six values: queue, job name, ready, scheduled,
--   leased, earliest due time 8 or ''.
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(lanes), and O(log n) per priority of a lane, for n ready jobs; O(1) per tenant with waiting jobs.
local lanes, due_members = count_by_lane()
if not lanes then
  return {}
end
local earliest = {}

local function note_due(lane4, due8)
  if not earliest[lane4] or decode_time(due8, 1) < decode_time(earliest[lane4], 1) then
    earliest[lane4] = due8
  end
end

-- Note the first job of each priority of a lane: one range query each, and one at the end.
local function note_first(key, lane4)
  local low, high = '[' .. lane4, range_end(lane4)
  while true do
    local first = redis.call('ZRANGEBYLEX', key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    local _, rank, due8 = read_ready(first)
    note_due(lane4, due8)
    low = '[' .. lane4 .. string.char(string.byte(rank) + 1)
  end
end

-- Note the first job of each tenant of a lane.
local function note_turns(lane4)
  local low, high = '[' .. lane4, range_end(lane4)
  repeat
    local members = redis.call('ZRANGEBYLEX', tenant_turn_key, low, high, 'LIMIT', 0, 1000)
    for _, member in ipairs(members) do
      note_due(lane4, sub(member, TURN_PLACE, TURN_PLACE + 7))
      low = '(' .. member
    end
  until #members < 1000
end

for _, member in ipairs(due_members) do
  local due8, _, lane4 = read_scheduled(member)
  note_due(lane4, due8)
end
local rows = {}

local function add_row(queue, name, ready, scheduled, leased, due8)
  for _, value in ipairs({ queue, name, ready, scheduled, leased, due8 }) do
    push(rows, value)
  end
end

for lane4, counted in pairs(lanes) do
  local ready, scheduled = counted[PENDING] + counted[RETRYING], counted[SCHEDULED] + counted[RETRY_SCHEDULED]
  if ready + scheduled + counted[LEASED] > 0 then
    if ready > 0 then
      note_first(ready_key, lane4)
      note_first(parked_lane_key, lane4)
      note_turns(lane4)
    end
    local lane = get_lane(lane4)
    add_row(lane.queue, lane.name, ready, scheduled, counted[LEASED], earliest[lane4] or '')
  end
end
local paused = {}
for queue, pause in pairs(read_pauses()) do
  push_pair(paused, queue, pause)
end
return { now8, rows, paused }
