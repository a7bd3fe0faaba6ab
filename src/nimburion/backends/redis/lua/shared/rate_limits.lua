-- Shared part: the rate limits of job names (core/rate_limits.py has the arithmetic in Python).
-- Keys: rate_limit spent_until
-- Provides: has_rates() -> whether any name has a rate limit
--   get_rate(name) -> {interval, burst, cost, needed, spent_until}, or nil
--   count_room(rate) -> how many jobs may start now; find_opening(rate) -> the time from which the next one may start
--   spend_units(rate, units), give_units_back(name, taken8), block_rate(rate, delay)
--   write_rates(): stores what changed
-- Idle: write_rates
-- Atomic: changes are collected, and write_rates cannot fail.
-- Cost: two HGET per name that has a rate limit.
local MAX_AHEAD = 31622400000000
local known_rates, any_rate = {}, nil

local function has_rates()
  if any_rate == nil then
    any_rate = redis.call('HLEN', rate_limit_key) > 0
  end
  return any_rate
end

local function get_rate(name)
  if not has_rates() then
    return nil
  end
  local rate = known_rates[name]
  if rate == nil then
    local record = redis.call('HGET', rate_limit_key, name)
    rate = false
    if record then
      local interval, burst, cost = unpack_struct('>I8I4I4', record)
      rate = {
        interval = interval, burst = burst, cost = cost, needed = math.min(cost, burst),
        spent_until = tonumber(redis.call('HGET', spent_until_key, name) or now),
      }
    end
    known_rates[name] = rate
  end
  return rate or nil
end

local function count_room(rate)
  local left = (rate.burst - rate.needed) * rate.interval - math.max(0, rate.spent_until - now)
  return left < 0 and 0 or math.floor(left / (rate.cost * rate.interval)) + 1
end

local function find_opening(rate)
  return rate.spent_until - (rate.burst - rate.needed) * rate.interval
end

local function set_spent_until(rate, time)
  rate.spent_until = math.min(math.max(time, now - MAX_AHEAD), now + MAX_AHEAD)
  rate.is_changed = true
end

-- Take units, or give them back if the number is negative.
local function spend_units(rate, units)
  local start = units > 0 and math.max(rate.spent_until, now) or rate.spent_until
  set_spent_until(rate, start + units * rate.interval)
end

-- Give back what a job that has not started took from the rate limit of its name, at the time `taken8`. The part that has become
-- available again by itself since then is not returned.
local function give_units_back(name, taken8)
  local rate = get_rate(name)
  if rate then
    set_spent_until(rate, rate.spent_until - math.max(0, rate.cost * rate.interval - math.max(0, now - decode_time(taken8, 1))))
  end
end

-- Allow no job for `delay` microseconds, and no burst after that.
local function block_rate(rate, delay)
  set_spent_until(rate, math.max(rate.spent_until, now + delay + (rate.burst - rate.needed) * rate.interval))
end

local function write_rates()
  for name, rate in pairs(known_rates) do
    if rate and rate.is_changed then
      redis.call('HSET', spent_until_key, name, string.format('%.0f', rate.spent_until))
    end
  end
end
