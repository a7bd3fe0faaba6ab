-- Shared part: lets what workers declare apply, with the changes of operators.
-- Keys: declared_limit limit_change limit limit_use lane_name lane_counts parked_lane changed_lane
-- Provides: apply_limits(job name), count_running(), carry_use_over(use, old interval, old burst, new interval, new burst)
--   The caller runs count_running() and write_uses() afterwards.
-- Atomic: no write can fail.
-- Cost: O(1) per job name. If a rate changes: O(keys in use) more. If a job name gets or loses a limit that closes its lanes: O(lanes) more,
--   once. Exchanges return parked jobs: see changed_lane in parked_jobs.lua.

-- Return until when units are spent after a rate replaced another (RateLimit.carry_over in core/rate_limits.py).
local function carry_over(spent, old_interval, old_burst, interval, burst)
  if not old_interval or not interval or spent > now + old_burst * old_interval then
    return spent
  end
  return math.min(spent, now + burst * interval)
end

-- Replace the rate of a key in its use.
local function carry_use_over(use, old_interval, old_burst, interval, burst)
  local spent = carry_over(use[SPENT_UNTIL], old_interval, old_burst, interval, burst)
  if spent ~= use[SPENT_UNTIL] then
    set_spent(use, spent)
  end
end

-- Let exchanges return the parked jobs of a name to their lanes: its limits changed.
local function mark_changed(name)
  local flat = redis.call('HGETALL', lane_name_key)
  for i = 1, #flat, 2 do
    if string.match(flat[i + 1], '%z(.*)$') == name
      and #redis.call('ZRANGEBYLEX', parked_lane_key, '[' .. flat[i], range_end(flat[i]), 'LIMIT', 0, 1) > 0 then
      redis.call('HSET', changed_lane_key, flat[i], '')
    end
  end
end

-- Carry the rates of the keys of a limit over, except those that have a rate of their own.
local function carry_keys_over(old, limit)
  local flat = redis.call('HGETALL', limit_use_key)
  for i = 1, #flat, 2 do
    local name, record = flat[i], flat[i + 1]
    local change = sub(name, 1, #limit[1] + 1) == limit[1] .. '\0' and (get_change(name) or {})
    if change and not change.rate then
      known_uses[name] = known_uses[name] or read_use(record)
      carry_use_over(known_uses[name], old[3], old[4], limit[3], limit[4])
    end
  end
end

-- The limits that close lanes and that a job name has got or lost.
local to_count = {}

-- Count the jobs that are leased in these limits.
local function count_running()
  if not next(to_count) then
    return
  end
  local counts, flat = {}, redis.call('HGETALL', lane_name_key)
  for i = 1, #flat, 2 do
    local queue, job = string.match(flat[i + 1], '^(%Z*)%z(.*)$')
    for _, rule in ipairs(get_rules(job)) do
      local limit = rule[1]
      if to_count[limit] and concerns_lane(limit, queue, job) then
        counts[limit] = (counts[limit] or 0) + tonumber(redis.call('HGET', lane_counts_key, flat[i] .. LEASED) or 0)
      end
    end
  end
  for limit in pairs(to_count) do
    local use = get_use(limit .. '\0')
    use[IN_USE], use[IS_CHANGED] = counts[limit] or 0, true
  end
end

-- Forget the units that jobs have taken from the rate of a job name that has no rate any more.
local function forget_units(old, new)
  for limit in pairs(old) do
    if get_limited_job(limit) and not (new[limit] and new[limit][3]) then
      set_spent(get_use(limit .. '\0'), 0)
    end
  end
end

-- Return rules by name, and those for which jobs may be parked as one text.
local function sort_out(rules)
  local by_name, parking = {}, {}
  for _, rule in ipairs(rules) do
    by_name[rule[1]] = rule
    if not closes_lane(rule[1]) then
      push(parking, rule)
    end
  end
  return by_name, cmsgpack.pack(parking)
end

local function set_rules(name, rules)
  local packed = #rules > 0 and cmsgpack.pack(rules) or false
  local before = redis.call('HGET', limit_key, name)
  if packed == before then
    return
  end
  if packed then
    redis.call('HSET', limit_key, name, packed)
  else
    redis.call('HDEL', limit_key, name)
  end
  known_rules[name] = rules
  local old, old_parking = sort_out(before and cmsgpack.unpack(before) or {})
  local new, parking = sort_out(rules)
  for limit, rule in pairs(new) do
    local was = old[limit]
    if was and (rule[3] ~= was[3] or rule[4] ~= was[4]) then
      carry_keys_over(was, rule)
    end
  end
  forget_units(old, new)
  for _, both in ipairs({ { old, new }, { new, old } }) do
    for limit in pairs(both[1]) do
      if closes_lane(limit) and not both[2][limit] then
        to_count[limit] = true
      end
    end
  end
  if parking ~= old_parking then
    mark_changed(name)
  end
end

-- Return the names of the limits of queues that are changed. Such a change concerns all job names.
local changed_queues
local function list_changed_queues()
  if not changed_queues then
    changed_queues = {}
    for _, field in ipairs(redis.call('HKEYS', limit_change_key)) do
      if get_limited_queue(field) and not string.find(field, '\0', 1, true) then
        push(changed_queues, field)
      end
    end
  end
  return changed_queues
end

local function apply_limits(name)
  local record = redis.call('HGET', declared_limit_key, name)
  local rules, known, own = {}, {}, get_job_limit_name(name)

  local function add_rule(limit, ...)
    known[limit] = true
    push(rules, { limit, apply_change(get_change(limit), ...) })
  end

  for _, rule in ipairs(record and cmsgpack.unpack(record) or {}) do
    add_rule(unpack(rule, 1, 6))
  end
  if not known[own] and get_change(own) then
    add_rule(own, false, false, 0, 0, '')
  end
  for _, limit in ipairs(list_changed_queues()) do
    if not known[limit] then
      add_rule(limit, false, false, 0, 0, '')
    end
  end
  table.sort(rules, function(one, other) return one[1] < other[1] end)
  set_rules(name, rules)
end
