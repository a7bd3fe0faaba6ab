-- Shared part: wakes idle workers for the jobs that a script made available, and notifies sessions of cancel requests and commands.
-- Keys: notify lane_number ready tenant_turn
-- Provides: mark_queue(queue, jobs), mark_job_name(name, jobs): those of any queue, mark_every_queue(), and notify_marked(own_handle), which wakes one idle worker for each
--   marked job, but not the handle that calls the script;
--   notify_session(id) notifies the worker of a session
-- Idle: notify_marked
-- Cost: see idle_workers.lua
local ALL_WORKERS = 1000000
local marked, marked_names, marked_all = {}, {}, false

local function mark_queue(queue, jobs)
  marked[queue] = (marked[queue] or 0) + (jobs or 1)
end

local function mark_job_name(name, jobs)
  marked_names[name] = (marked_names[name] or 0) + jobs
end

-- Mark the jobs of the marked names on the queues for which workers are idle, if jobs wait there.
local function mark_queues_of_names()
  for _, queue in ipairs(list_idle_queues()) do
    for name, jobs in pairs(marked_names) do
      local number = redis.call('HGET', lane_number_key, queue .. '\0' .. name)
      if number then
        local first = redis.call('ZRANGEBYLEX', ready_key, '[' .. number, '+', 'LIMIT', 0, 1)[1]
        if first and string.sub(first, 1, #number) == number or redis.call('EXISTS', tenant_turn_key) == 1 then
          mark_queue(queue, jobs)
        end
      end
    end
  end
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
  if next(marked_names) then
    mark_queues_of_names()
  end
  for queue, jobs in pairs(marked) do
    wake_idle(queue, jobs, false, own_handle)
  end
end
