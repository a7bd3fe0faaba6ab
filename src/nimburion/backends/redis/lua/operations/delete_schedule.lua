-- Forget a schedule.
-- Keys: schedule
-- Inputs: ARGV[3] name
-- Result: 1 if there was one
return redis.call('HDEL', schedule_key, ARGV[3])
