-- change_limit: changes a limit or one of its keys, or lets what is declared apply again.
-- Keys: declared_limit limit_change limit limit_use session_info session_expiry
-- Arguments: ARGV[3] name of the limit, [4] '1' if it is for one key, [5] that key, [6] change (JSON), '' to reset
-- Reply: 1 if there was a change before, else 0
-- Atomic: one script. A change is stored and applied together, so the next exchange follows it.
-- Cost: that of limit_changes.lua for each job name that has the limit.
local name, for_key, json = ARGV[3], ARGV[4] == '1', ARGV[6]
local field = for_key and name .. '\0' .. ARGV[5] or name
local before = get_change(field)
local after
if json == '' then
  redis.call('HDEL', limit_change_key, field)
else
  after = cjson.decode(json)
  if before then
    after.concurrency = after.concurrency or before.concurrency
    after.rate = after.rate or before.rate
  end
  redis.call('HSET', limit_change_key, field, now8 .. cjson.encode(after))
  any_change = true
end

-- Return the job names that have the limit, with its parts.
local function list_job_limits()
  local found, flat = {}, redis.call('HGETALL', limit_key)
  for i = 1, #flat, 2 do
    for _, limit in ipairs(cmsgpack.unpack(flat[i + 1])) do
      if limit[1] == name then
        found[flat[i]] = limit
      end
    end
  end
  return found
end

-- Return the job names that have limits, and those of the sessions that have not ended.
local function list_known_names()
  local known = {}
  for _, key in ipairs({ declared_limit_key, limit_key }) do
    for _, job in ipairs(redis.call('HKEYS', key)) do
      known[job] = true
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', session_expiry_key, 0, -1)) do
    for _, job in ipairs(cjson.decode(redis.call('HGET', session_info_key, id)).names) do
      known[job] = true
    end
  end
  return known
end

local jobs = list_job_limits()
if for_key then
  local count = 1
  for _, limit in pairs(jobs) do
    local _, old_interval, old_burst = apply_change(before, limit[2], limit[3], limit[4], limit[5])
    local maximum, interval, burst = apply_change(after, limit[2], limit[3], limit[4], limit[5])
    carry_use_over(get_use(field), old_interval, old_burst, interval, burst)
    count = math.max(count, maximum or 1)
  end
  let_return(field, count)
  unpark_changed()
else
  if get_limited_queue(name) then
    jobs = list_known_names()
  elseif get_limited_job(name) then
    jobs[get_limited_job(name)] = true
  end
  for job in pairs(jobs) do
    apply_limits(job)
  end
  count_running()
end
write_uses()
write_turns()
mark_every_queue()
notify_marked()
return before and 1 or 0
