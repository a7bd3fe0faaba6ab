-- Prune: forget what is older than it is to be kept, and what is left of sessions and unique keys that are long over.
-- Keys: job done dead_at result resulted unique until gone turn session sessions held
-- Inputs: ARGV[3] the most to forget; in microseconds, '' for ever: [4] how long completed and cancelled jobs are kept,
--   [5] failed ones, [6] results; [7] how many completed and cancelled ones are kept, or ''; [8] how long the id of a session
--   that is over is remembered
-- Result: {how many jobs and results, 1 if more sessions or keys may be left}
-- Atomic: each call is one script, and leaves a true state: some jobs fewer, each gone whole
local left = tonumber(ARGV[3])

local function older(key, kept, most)
  if kept == '' or most <= 0 then
    return {}
  end
  return redis.call('ZRANGEBYSCORE', key, '-inf', string.format('(%.0f', now - tonumber(kept)), 'LIMIT', 0, most)
end

local function forget_these(fields)
  left = left - #fields
  forget(fields, gather(job_key, fields))
end

-- How many were dropped of the sessions that are over for long and hold nothing.
local function drop_sessions()
  local dropped = 0
  for _, id in ipairs(older(gone_key, ARGV[8], 500)) do
    local session4 = string.sub(redis.call('HGET', turn_key, id), 1, 4)
    if #redis.call('ZRANGEBYLEX', held_key, '[' .. session4, after(session4), 'LIMIT', 0, 1) == 0 then
      redis.call('HDEL', turn_key, id)
      redis.call('HDEL', session_key, id)
      redis.call('HDEL', sessions_key, session4)
      redis.call('ZREM', gone_key, id)
      dropped = dropped + 1
    end
  end
  return dropped
end

-- How many were dropped of the unique keys whose time is past.
local function drop_keys()
  local fields = redis.call('ZRANGEBYSCORE', until_key, '-inf', now, 'LIMIT', 0, 500)
  each_part('HDEL', unique_key, fields)
  each_part('ZREM', until_key, fields)
  return #fields
end

local more = drop_sessions() == 500
more = drop_keys() == 500 or more
forget_these(older(done_key, ARGV[4], left))
forget_these(older(dead_at_key, ARGV[5], left))
if ARGV[7] ~= '' then
  local excess = math.min(left, redis.call('ZCARD', done_key) - tonumber(ARGV[7]))
  if excess > 0 then
    forget_these(redis.call('ZRANGE', done_key, 0, excess - 1))
  end
end
local results = older(resulted_key, ARGV[6], left)
each_part('HDEL', result_key, results)
each_part('ZREM', resulted_key, results)
count_lanes()
return { tonumber(ARGV[3]) - left + #results, more and 1 or 0 }
