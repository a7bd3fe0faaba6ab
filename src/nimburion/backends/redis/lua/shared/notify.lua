-- Part of scripts that make work: notify the queues whose workers have nothing to do.
-- Keys: notify wakeup0 wakeup1 wakeup2 wakeup3
-- Inputs: the queues that were marked
-- Result: mark_queue(queue), mark_every_queue(), notify_marked(); it publishes the marked queues that somebody listens for, and adds to the
--   stream of those that an exchange waits on
-- Atomic: part of its script. A worker that found nothing has put its queues into the hash notify in that very step, so
--   the next job of one of them notifies; while workers are busy nobody is in it and nothing is published. A field is the
--   queue for those who listen to the channel, and the queue and a NUL for those whose next exchange waits on a stream.
local STREAMS = { wakeup0_key, wakeup1_key, wakeup2_key, wakeup3_key }
local marked, marked_all = {}, false

local function mark_queue(queue)
  marked[queue] = true
end

local function mark_every_queue()
  marked_all = true
end

local function wake_stream(stream)
  redis.call('XADD', stream, 'MAXLEN', 1, '*', '', '')
end

-- The streams are shared out by the sum of the bytes of a queue's name (see long_poll.py).
local function get_stream(queue)
  local sum = 0
  for i = 1, #queue do
    sum = sum + string.byte(queue, i)
  end
  return STREAMS[sum % #STREAMS + 1]
end

local function notify_marked()
  if marked_all then
    if redis.call('DEL', notify_key) == 1 then
      redis.call('PUBLISH', notify_key, '*')
      for _, stream in ipairs(STREAMS) do
        wake_stream(stream)
      end
    end
    return
  end
  local notified = {}
  for queue in pairs(marked) do
    local waits = queue .. '\0'
    local found = redis.call('HMGET', notify_key, queue, waits)
    if found[1] then
      redis.call('HDEL', notify_key, queue)
      notified[#notified + 1] = queue
    end
    if found[2] then
      redis.call('HDEL', notify_key, waits)
      wake_stream(get_stream(queue))
    end
  end
  if #notified > 0 then
    redis.call('PUBLISH', notify_key, table.concat(notified, '\0'))
  end
end
