-- put_schedule: stores the declaration of a schedule. The state of an existing schedule (paused, last tick, last job) is kept.
-- Keys: schedule
-- Arguments: ARGV[3] name, [4] state of a new schedule (see operations.py), [5] declaration
-- Reply: none
-- Atomic: one script.
-- Cost: O(1).
local kept = redis.call('HGET', schedule_key, ARGV[3])
local attempts = kept and string.sub(kept, 1, 11 + string.byte(kept, 11)) or ARGV[4]
redis.call('HSET', schedule_key, ARGV[3], attempts .. ARGV[5])
