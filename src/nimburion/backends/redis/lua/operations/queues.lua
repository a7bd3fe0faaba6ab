-- queues: returns the lanes with unfinished jobs, and the paused queues.
-- Keys: lane_name ready paused_queue
-- Reply: {}: promote and call again; or {now 8, rows}. A row is seven values: queue, job name ('': the queue is paused), ready,
--   scheduled, leased, earliest due time 8 or '', 1 if paused.
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(lanes), and O(log n) per priority of a lane, for n ready jobs.
local lanes, due_members = count_jobs()
if not lanes then
  return {}
end
local earliest = {}

local function note_due(number, due8)
  if not earliest[number] or decode_time(due8, 1) < decode_time(earliest[number], 1) then
    earliest[number] = due8
  end
end

-- Note the first job of each priority of a lane: one range query each, and one at the end.
local function note_first(number)
  local low, high = '[' .. number, range_end(number)
  while true do
    local first = redis.call('ZRANGEBYLEX', ready_key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    note_due(number, string.sub(first, 6, 13))
    low = '[' .. number .. string.char(string.byte(first, 5) + 1)
  end
end

for _, member in ipairs(due_members) do
  note_due(string.sub(member, 17, 20), string.sub(member, 1, 8))
end
local details = {}
for number, counted in pairs(lanes) do
  local ready, aside = counted.P + counted.R, counted.S + counted.T
  if ready + aside + counted.L > 0 then
    if ready > 0 then
      note_first(number)
    end
    local lane = get_lane(number)
    push_pair(details, lane.queue, lane.name)
    push_pair(details, ready, aside)
    push_pair(details, counted.L, earliest[number] or '')
    push(details, 0)
  end
end
for _, name in ipairs(redis.call('HKEYS', paused_queue_key)) do
  push_pair(details, name, '')
  push_pair(details, 0, 0)
  push_pair(details, 0, '')
  push(details, 1)
end
return { now8, details }
