-- Part of scripts that make work: ring the queues whose workers have nothing to do.
-- Keys: bell
-- Inputs: the queues that were marked
-- Result: mark(queue), mark_all(), ring(); ring publishes the marked queues that somebody listens for
-- Locks: none
-- Atomic: part of its script. A worker that found nothing has put its queues into the hash bell in that very step, so
--   the next job of one of them rings; while workers are busy nobody is in it and nothing is published.
local marked, marked_all = {}, false

local function mark(queue)
  marked[queue] = true
end

local function mark_all()
  marked_all = true
end

local function ring()
  if marked_all then
    if redis.call('DEL', bell_key) == 1 then
      redis.call('PUBLISH', bell_key, '*')
    end
    return
  end
  local rung = {}
  for queue in pairs(marked) do
    if redis.call('HDEL', bell_key, queue) == 1 then
      rung[#rung + 1] = queue
    end
  end
  if #rung > 0 then
    redis.call('PUBLISH', bell_key, table.concat(rung, '\0'))
  end
end
