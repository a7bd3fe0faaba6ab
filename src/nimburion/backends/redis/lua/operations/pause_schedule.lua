-- Pause or resume a schedule.
-- Keys: schedule
-- Inputs: ARGV[3] name, [4] '1' to pause it, '0' to resume
-- Result: 1 if there is one
local kept = redis.call('HGET', schedule_key, ARGV[3])
if not kept then
  return 0
end
redis.call('HSET', schedule_key, ARGV[3], ARGV[4] .. string.sub(kept, 2))
return 1
