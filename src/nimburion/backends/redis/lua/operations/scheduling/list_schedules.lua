-- list_schedules: returns all schedules.
-- Keys: schedule
-- Reply: {name, schedule (see operations.py), ...}
-- Atomic: reads only.
-- Cost: O(schedules).
return redis.call('HGETALL', schedule_key)
