-- Queues: the lanes that hold an unfinished job, and the queues that are paused.
-- Keys: lanes ready paused
-- Result: {} to be asked again after promoting, or {now 8, [queue, name or '' where it is paused, ready, set aside, leased, earliest due 8 or '', 1 if paused, ...]}
local lanes, overdue = tally()
if not lanes then
  return {}
end
local earliest = {}

local function note_due(number, due8)
  if not earliest[number] or micros8(due8, 1) < micros8(earliest[number], 1) then
    earliest[number] = due8
  end
end

-- The first of each priority of a lane: one look-up each, and one at the end.
local function note_first(number)
  local low, high = '[' .. number, after(number)
  while true do
    local first = redis.call('ZRANGEBYLEX', ready_key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    note_due(number, string.sub(first, 6, 13))
    low = '[' .. number .. string.char(string.byte(first, 5) + 1)
  end
end

for _, member in ipairs(overdue) do
  note_due(string.sub(member, 17, 20), string.sub(member, 1, 8))
end
local told = {}
for number, counted in pairs(lanes) do
  local ready, aside = counted.P + counted.R, counted.S + counted.T
  if ready + aside + counted.L > 0 then
    if ready > 0 then
      note_first(number)
    end
    local lane = lane_of(number)
    push_two(told, lane.queue, lane.name)
    push_two(told, ready, aside)
    push_two(told, counted.L, earliest[number] or '')
    push(told, 0)
  end
end
for _, name in ipairs(redis.call('HKEYS', paused_key)) do
  push_two(told, name, '')
  push_two(told, 0, 0)
  push_two(told, 0, '')
  push(told, 1)
end
return { now8, told }
