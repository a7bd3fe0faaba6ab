-- delete_schedule: deletes a schedule.
-- Keys: schedule
-- Arguments: ARGV[3] name
-- Reply: 1 if the schedule existed, else 0
-- Atomic: one command.
-- Cost: O(1).
return redis.call('HDEL', schedule_key, ARGV[3])
