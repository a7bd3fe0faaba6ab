-- pause_schedule: pauses or resumes a schedule.
-- Keys: schedule
-- Arguments: ARGV[3] name, [4] '1' to pause, '0' to resume
-- Reply: 1 if the schedule exists, else 0
-- Atomic: one script.
-- Cost: O(1).
local kept = redis.call('HGET', schedule_key, ARGV[3])
if not kept then
  return 0
end
redis.call('HSET', schedule_key, ARGV[3], ARGV[4] .. string.sub(kept, 2))
return 1
