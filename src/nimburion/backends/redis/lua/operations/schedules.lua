-- All schedules.
-- Keys: schedule
-- Result: [name, schedule (see operations.py), ...]
return redis.call('HGETALL', schedule_key)
