-- pause_queue: pauses or resumes a queue.
-- Keys: paused_queue
-- Arguments: ARGV[3] queue, [4] end of the pause 8 (all ones: when it is resumed), '' to resume, [5] [by, reason] (JSON)
-- Reply: none
-- Atomic: one script. Every exchange reads the hash, so no later exchange reserves from a paused queue.
-- Cost: O(1).
local queue, until8, reason = ARGV[3], ARGV[4], ARGV[5]
if until8 ~= '' then
  local pause = redis.call('HGET', paused_queue_key, queue)
  local since8 = pause and is_in_force(pause) and string.sub(pause, 9, 16) or now8
  redis.call('HSET', paused_queue_key, queue, until8 .. since8 .. reason)
  return
end
redis.call('HDEL', paused_queue_key, queue)
mark_queue(queue, ALL_WORKERS)
notify_marked()
