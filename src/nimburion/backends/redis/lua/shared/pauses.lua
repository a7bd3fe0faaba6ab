-- Shared part: the pauses of queues.
-- Keys: paused_queue
-- Provides: is_in_force(pause), read_pauses() -> {queue: pause} of the pauses that are in force (layout: see record_format.lua)
-- Cost: one command while no queue is paused, else O(paused queues).
--
-- A pause that has ended stays in the hash until `prune` or another pause of the queue.
local function is_in_force(pause)
  return decode_time(pause, 1) > now
end

local function read_pauses()
  local pauses = {}
  if redis.call('HLEN', paused_queue_key) > 0 then
    local flat = redis.call('HGETALL', paused_queue_key)
    for i = 1, #flat, 2 do
      pauses[flat[i]] = is_in_force(flat[i + 1]) and flat[i + 1] or nil
    end
  end
  return pauses
end
