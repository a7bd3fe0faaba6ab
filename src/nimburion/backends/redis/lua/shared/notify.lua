-- Part of scripts that make work: ring the queues whose workers have nothing to do.
-- Keys: bell ring0 ring1 ring2 ring3
-- Inputs: the queues that were marked
-- Result: mark(queue), mark_all(), ring(); ring publishes the marked queues that somebody listens for, and adds to the
--   stream of those that an exchange waits on
-- Atomic: part of its script. A worker that found nothing has put its queues into the hash bell in that very step, so
--   the next job of one of them rings; while workers are busy nobody is in it and nothing is published. A field is the
--   queue for those who listen to the channel, and the queue and a NUL for those whose next exchange waits on a stream.
local RINGS = { ring0_key, ring1_key, ring2_key, ring3_key }
local marked, marked_all = {}, false

local function mark(queue)
  marked[queue] = true
end

local function mark_all()
  marked_all = true
end

local function ring_stream(stream)
  redis.call('XADD', stream, 'MAXLEN', 1, '*', '', '')
end

-- The streams are shared out by the sum of the bytes of a queue's name (see long_poll.py).
local function stream_of(queue)
  local sum = 0
  for i = 1, #queue do
    sum = sum + string.byte(queue, i)
  end
  return RINGS[sum % #RINGS + 1]
end

local function ring()
  if marked_all then
    if redis.call('DEL', bell_key) == 1 then
      redis.call('PUBLISH', bell_key, '*')
      for _, stream in ipairs(RINGS) do
        ring_stream(stream)
      end
    end
    return
  end
  local rung = {}
  for queue in pairs(marked) do
    local waits = queue .. '\0'
    local found = redis.call('HMGET', bell_key, queue, waits)
    if found[1] then
      redis.call('HDEL', bell_key, queue)
      rung[#rung + 1] = queue
    end
    if found[2] then
      redis.call('HDEL', bell_key, waits)
      ring_stream(stream_of(queue))
    end
  end
  if #rung > 0 then
    redis.call('PUBLISH', bell_key, table.concat(rung, '\0'))
  end
end
