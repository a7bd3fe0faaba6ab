-- pause: pauses or resumes a queue.
-- Keys: paused_queue
-- Arguments: ARGV[3] queue, [4] '1' to pause, '' to resume
-- Reply: 1 if this changed something, else 0
-- Atomic: one script. Every exchange reads the hash, so no later exchange reserves from a paused queue.
-- Cost: O(1).
if ARGV[4] == '1' then
  return redis.call('HSET', paused_queue_key, ARGV[3], '1')
end
mark_queue(ARGV[3])
notify_marked()
return redis.call('HDEL', paused_queue_key, ARGV[3])
