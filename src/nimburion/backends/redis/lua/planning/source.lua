-- Part of planning: reads the limits of the jobs of a lane, and the jobs that are parked (backends/planning/source.py).
-- Keys: job parked
-- Provides: read_limits(lane, members, first, most); known_limits: what it read, by field
--   peek_parked(lane, name) -> the first job of a lane that is parked for a key, or nil; what has it at `at`
--   note_parked(lane, limit): one more job of the lane is parked
-- Cost: two commands for many jobs.
-- How many jobs with limits by key are read at a time, at least; fewer if fewer wait. And at most, of those that are parked.
local MIN_CANDIDATES, MAX_CANDIDATES = 16, 250
local known_limits, parked_turns = {}, {}

local function read_limits(lane, members, first, most)
  local fields, names = {}, {}
  for i = first, math.min(first + most - 1, #members) do
    push(fields, sub(members[i], READY_SEQ, READY_END))
  end
  local bodies = get_in_batches(job_key, fields)
  for i = 1, #fields do
    local limits = list_limits(lane, bodies[i])
    choice.bodies[fields[i]], known_limits[fields[i]] = bodies[i], limits
    for j = 1, #limits do
      push(names, limits[j][LIMIT_NAME])
    end
  end
  read_uses(names)
end

-- Return the next of the jobs of a lane that are parked for a key, as in collect_returned, or nil.
local function peek_parked(lane, name)
  local place = name .. '\0' .. lane.number
  local next_jobs = parked_turns[place]
  if not next_jobs then
    write_parked()
    local low, high = get_parked_range(name, lane.number)
    next_jobs = { members = {}, at = 1, chunk = 1, low = low, high = high }
    parked_turns[place] = next_jobs
  end
  if not next_jobs.members[next_jobs.at] and next_jobs.chunk > 0 then
    local members = redis.call('ZRANGEBYLEX', parked_key, next_jobs.low, next_jobs.high, 'LIMIT', 0, next_jobs.chunk)
    local is_last = #members < next_jobs.chunk
    next_jobs.low = '(' .. (members[#members] or '')
    next_jobs.chunk = is_last and 0 or math.min(math.max(2 * next_jobs.chunk, MIN_CANDIDATES), MAX_CANDIDATES)
    for i = 1, #members do
      members[i] = sub(members[i], #name + 2)
    end
    read_limits(lane, members, 1, #members)
    next_jobs.members, next_jobs.at = members, 1
  end
  return next_jobs.members[next_jobs.at], next_jobs
end

-- One more job of a lane is parked for a limit. It may come before those that were read.
local function note_parked(lane, limit)
  parked_turns[limit[LIMIT_NAME] .. '\0' .. lane.number] = nil
end
