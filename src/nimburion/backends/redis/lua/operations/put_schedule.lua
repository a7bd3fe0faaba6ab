-- Put a schedule; what happened to a kept one stays.
-- Keys: schedule
-- Inputs: ARGV[3] name, [4] what happened so far (see operations.py), [5] what it says
local kept = redis.call('HGET', schedule_key, ARGV[3])
local attempts = kept and string.sub(kept, 1, 11 + string.byte(kept, 11)) or ARGV[4]
redis.call('HSET', schedule_key, ARGV[3], attempts .. ARGV[5])
