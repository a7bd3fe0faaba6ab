-- Shared part: wakes idle workers for the jobs that a script made available, and notifies sessions of cancel requests and commands.
-- Keys: notify
-- Provides: mark_queue(queue, jobs), mark_every_queue(), and notify_marked(own_handle), which wakes one idle worker for each
--   marked job, but not the handle that calls the script;
--   notify_session(id) notifies the worker of a session
-- Idle: notify_marked
-- Cost: see idle_workers.lua
local ALL_WORKERS = 1000000
local marked, marked_all = {}, false

local function mark_queue(queue, jobs)
  marked[queue] = (marked[queue] or 0) + (jobs or 1)
end

local function mark_every_queue()
  marked_all = true
end

-- The channel carries `@` with the id of a session.
local function notify_session(id)
  redis.call('PUBLISH', notify_key, '@' .. id)
end

local function notify_marked(own_handle)
  if marked_all then
    wake_all_idle()
    return
  end
  for queue, jobs in pairs(marked) do
    wake_idle(queue, jobs, false, own_handle)
  end
end
