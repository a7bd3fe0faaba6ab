-- Pause or resume a queue.
-- Keys: paused_queue
-- Inputs: ARGV[3] queue, [4] '1' to pause it, '' to resume
-- Result: 1 when that changed something
-- Atomic: one script; every exchange looks at the hash
if ARGV[4] == '1' then
  return redis.call('HSET', paused_queue_key, ARGV[3], '1')
end
mark_queue(ARGV[3])
notify_marked()
return redis.call('HDEL', paused_queue_key, ARGV[3])
