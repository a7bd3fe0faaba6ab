-- Shared part: reads and makes schedules, the records of the hash `schedule` (layout: see record_format.lua).
-- Provides: read_schedule(record), make_schedule(schedule)
local SCHEDULE_PAUSED, SCHEDULE_ACTIVE = '1', '0'
local NO_TICK = '\0\0\0\0\0\0\0\0'

-- Return the fields of a schedule. `last_tick` and `last_job` are '' if it never fired. `state` is all but the declaration.
local function read_schedule(record)
  local paused, has_tick, tick8, length, rest = struct.unpack('>c1c1c8B', record)
  return {
    is_paused = paused == SCHEDULE_PAUSED, last_tick = has_tick == '1' and tick8 or '',
    last_job = string.sub(record, rest, rest + length - 1), state = string.sub(record, 1, rest + length - 1),
    declaration = string.sub(record, rest + length),
  }
end

local function make_schedule(schedule)
  local tick8 = schedule.last_tick
  return (schedule.is_paused and SCHEDULE_PAUSED or SCHEDULE_ACTIVE) .. (tick8 ~= '' and '1' .. tick8 or '0' .. NO_TICK)
    .. string.char(#schedule.last_job) .. schedule.last_job .. schedule.declaration
end
