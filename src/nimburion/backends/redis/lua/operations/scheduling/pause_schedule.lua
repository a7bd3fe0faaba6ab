-- pause_schedule: pauses or resumes a schedule.
-- Keys: schedule
-- Arguments: ARGV[3] name, [4] '1' to pause, '0' to resume
-- Reply: 1 if the schedule exists, else 0
-- Atomic: one script.
-- Cost: O(1).
local name, paused = ARGV[3], ARGV[4]
local record = redis.call('HGET', schedule_key, name)
if not record then
  return 0
end
local schedule = read_schedule(record)
schedule.is_paused = paused == SCHEDULE_PAUSED
redis.call('HSET', schedule_key, name, make_schedule(schedule))
return 1
