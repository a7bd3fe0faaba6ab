-- Queues: those that hold an unfinished job or are paused.
-- Keys: lanes ready paused
-- Inputs: none
-- Result: {} to be asked again after promoting, or {now 8, [name, ready, set aside, leased, earliest due 8 or '', 1 if paused, ...]}
-- Locks: none
-- Atomic: one script that writes nothing
local lanes, overdue = tally()
if not lanes then
  return {}
end
local queues, names = {}, {}

local function queue_of(name)
  if not queues[name] then
    queues[name] = { ready = 0, aside = 0, leased = 0, paused = 0 }
    push(names, name)
  end
  return queues[name]
end

local function note_due(queue, due8)
  if not queue.due or micros8(due8, 1) < micros8(queue.due, 1) then
    queue.due = due8
  end
end

-- The first of each priority of a lane: one look-up each, and one at the end.
local function note_first(queue, number)
  local low, high = '[' .. number, after(number)
  while true do
    local first = redis.call('ZRANGEBYLEX', ready_key, low, high, 'LIMIT', 0, 1)[1]
    if not first then
      return
    end
    note_due(queue, string.sub(first, 6, 13))
    low = '[' .. number .. string.char(string.byte(first, 5) + 1)
  end
end

for number, counted in pairs(lanes) do
  local ready, aside = counted.P + counted.R, counted.S + counted.T
  if ready + aside + counted.L > 0 then
    local queue = queue_of(lane_of(number).queue)
    queue.ready, queue.aside, queue.leased = queue.ready + ready, queue.aside + aside, queue.leased + counted.L
    if ready > 0 then
      note_first(queue, number)
    end
  end
end
for _, member in ipairs(overdue) do
  note_due(queue_of(lane_of(string.sub(member, 17, 20)).queue), string.sub(member, 1, 8))
end
for _, name in ipairs(redis.call('HKEYS', paused_key)) do
  queue_of(name).paused = 1
end
local told = {}
for _, name in ipairs(names) do
  local queue = queues[name]
  push_two(told, name, queue.ready)
  push_two(told, queue.aside, queue.leased)
  push_two(told, queue.due or '', queue.paused)
end
return { now8, told }
