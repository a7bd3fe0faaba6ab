-- Shared part: wakes idle workers.
-- Keys: idle_worker
-- Provides: wake_idle(queue, jobs, passed, own_handle) and wake_all_idle() wake workers; list_idle_queues(); forget_idle_session(id, info) removes idle entries
-- Atomic: an exchange that finds no job adds its idle entries in the same step, so no job is missed. The step that makes a job
--   available removes an entry for it. Busy workers have no entries, and cause no notifications.
-- Cost: one EXISTS, and O(log n) for each worker that is woken, for n idle workers.
--
-- An idle entry is a member of `idle_worker`: queue NUL session id NUL handle 16 | mode 1. With the mode STREAM, the exchange of the
-- handle waits on its own stream; else the handle listens on its own channel. A wake-up carries the queue, and whether another
-- worker has passed it on because it found no job.
local STREAM = 's'
local WAKEUP_LIFETIME = 60 -- seconds after which the stream of a handle that has died is deleted

-- Return the queue, the handle and the mode of an idle entry.
local function read_idle_entry(member)
  local cut = string.find(member, '\0', 1, true)
  return string.sub(member, 1, cut - 1), string.sub(member, -17, -2), string.sub(member, -1)
end

local function wake_worker(member, passed)
  local queue, handle, mode = read_idle_entry(member)
  local name = idle_worker_key .. ':' .. handle
  redis.call('ZREM', idle_worker_key, member)
  if mode == STREAM then
    redis.call('XADD', name, 'MAXLEN', 1, '*', queue, passed and '!' or '')
    redis.call('EXPIRE', name, WAKEUP_LIFETIME)
  else
    redis.call('PUBLISH', name, (passed and '!' or '') .. queue)
  end
end

-- Wake up to `jobs` idle workers of a queue, but not `own_handle`. The time decides with which it begins, so that they take turns.
local function wake_idle(queue, jobs, passed, own_handle)
  if redis.call('EXISTS', idle_worker_key) == 0 then
    return
  end
  local first, middle = '[' .. queue .. '\0', queue .. '\0' .. string.format('%02x', now % 256)
  for _, range in ipairs({ { '[' .. middle, '(' .. queue .. '\1' }, { first, '(' .. middle } }) do
    for _, member in ipairs(redis.call('ZRANGEBYLEX', idle_worker_key, range[1], range[2], 'LIMIT', 0, jobs + 1)) do
      local _, handle = read_idle_entry(member)
      if jobs > 0 and handle ~= own_handle then
        wake_worker(member, passed)
        jobs = jobs - 1
      end
    end
    if jobs == 0 then
      break
    end
  end
end

local function wake_all_idle()
  for _, member in ipairs(redis.call('ZRANGE', idle_worker_key, 0, -1)) do
    wake_worker(member, true)
  end
end

-- Return the queues for which workers are idle.
local function list_idle_queues()
  local queues, low = {}, '-'
  while true do
    local member = redis.call('ZRANGEBYLEX', idle_worker_key, low, '+', 'LIMIT', 0, 1)[1]
    if not member then
      return queues
    end
    local queue = read_idle_entry(member)
    queues[#queues + 1] = queue
    low = '[' .. queue .. '\1'
  end
end

-- Remove the idle entries of a session. `info` is its description, as in session_info.
local function forget_idle_session(id, info)
  if redis.call('EXISTS', idle_worker_key) == 0 then
    return
  end
  for _, queue in ipairs(cjson.decode(info).queues) do
    local first = queue .. '\0' .. id
    for _, member in ipairs(redis.call('ZRANGEBYLEX', idle_worker_key, '[' .. first .. '\0', '(' .. first .. '\1')) do
      redis.call('ZREM', idle_worker_key, member)
    end
  end
end
