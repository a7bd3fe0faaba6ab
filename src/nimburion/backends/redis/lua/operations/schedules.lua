-- All schedules.
-- Keys: schedule
-- Result: [name, schedule (see scheduling.py), ...]
return redis.call('HGETALL', schedule_key)
