-- All schedules.
-- Keys: schedule
-- Inputs: none
-- Result: [name, schedule (see scheduling.py), ...]
-- Locks: none
-- Atomic: one script that writes nothing
return redis.call('HGETALL', schedule_key)
