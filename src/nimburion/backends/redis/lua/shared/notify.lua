-- Shared part: notifies idle workers of the queues that have new work, and sessions of cancel requests and commands.
-- Keys: notify wakeup0 wakeup1 wakeup2 wakeup3
-- Provides: mark_queue(queue), mark_every_queue(), and notify_marked(), which notifies the subscribers of all marked queues;
--   notify_session(id), which notifies the worker of a session
-- Idle: notify_marked
-- Atomic: an exchange that finds no job adds its queues to the hash `notify` in the same step. The next job of such a queue
--   therefore notifies it. Busy workers are not in the hash, so they cause no notifications.
-- Cost: one HMGET per marked queue.
--
-- The hash has two kinds of fields. The name of a queue: its subscribers listen to the channel. The name and a NUL: their
-- next exchange waits on a wake-up stream.
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

-- The sum of the bytes of a queue's name selects its stream; long_poll.py uses the same formula.
local function get_stream(queue)
  local sum = 0
  for i = 1, #queue do
    sum = sum + string.byte(queue, i)
  end
  return STREAMS[sum % #STREAMS + 1]
end

-- The channel carries the names of queues, and `@` with the id of a session.
local function notify_session(id)
  redis.call('PUBLISH', notify_key, '@' .. id)
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
    local long_poll_field = queue .. '\0'
    local subscribers = redis.call('HMGET', notify_key, queue, long_poll_field)
    if subscribers[1] then
      redis.call('HDEL', notify_key, queue)
      notified[#notified + 1] = queue
    end
    if subscribers[2] then
      redis.call('HDEL', notify_key, long_poll_field)
      wake_stream(get_stream(queue))
    end
  end
  if #notified > 0 then
    redis.call('PUBLISH', notify_key, table.concat(notified, '\0'))
  end
end
