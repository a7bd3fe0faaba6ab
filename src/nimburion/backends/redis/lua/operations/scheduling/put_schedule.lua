-- put_schedule: stores the declaration of a schedule. The state of an existing schedule (paused, last tick, last job) is kept.
-- Keys: schedule
-- Arguments: ARGV[3] name, [4] state of a new schedule (see operations.py), [5] declaration
-- Reply: none
-- Atomic: one script.
-- Cost: O(1).
local name, new_state, declaration = ARGV[3], ARGV[4], ARGV[5]
local record = redis.call('HGET', schedule_key, name)
redis.call('HSET', schedule_key, name, (record and read_schedule(record).state or new_state) .. declaration)
