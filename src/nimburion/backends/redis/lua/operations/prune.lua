-- Prune: forget what is older than it is to be kept, and what is left of sessions and unique keys that are long over.
-- Keys: job finished dead_letter_time result result_time unique_key unique_expiry closed_session session_state session_info session_id session_leases
-- Inputs: ARGV[3] the most to forget; in microseconds, '' for ever: [4] how long completed and cancelled jobs are kept,
--   [5] failed ones, [6] results; [7] how many completed and cancelled ones are kept, or ''; [8] how long the id of a session
--   that is over is remembered
-- Result: {how many jobs and results, 1 if more sessions or keys may be left}
-- Atomic: each call is one script, and leaves a true state: some jobs fewer, each gone whole
local left = tonumber(ARGV[3])

local function find_older(key, kept, most)
  if kept == '' or most <= 0 then
    return {}
  end
  return redis.call('ZRANGEBYSCORE', key, '-inf', string.format('(%.0f', now - tonumber(kept)), 'LIMIT', 0, most)
end

local function delete_fields(fields)
  left = left - #fields
  delete_jobs(fields, get_in_batches(job_key, fields))
end

-- How many were dropped of the sessions that are over for long and hold nothing.
local function drop_sessions()
  local dropped = 0
  for _, id in ipairs(find_older(closed_session_key, ARGV[8], 500)) do
    local session4 = string.sub(redis.call('HGET', session_state_key, id), 1, 4)
    if #redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4), 'LIMIT', 0, 1) == 0 then
      redis.call('HDEL', session_state_key, id)
      redis.call('HDEL', session_info_key, id)
      redis.call('HDEL', session_id_key, session4)
      redis.call('ZREM', closed_session_key, id)
      dropped = dropped + 1
    end
  end
  return dropped
end

-- How many were dropped of the unique keys whose time is past.
local function drop_keys()
  local fields = redis.call('ZRANGEBYSCORE', unique_expiry_key, '-inf', now, 'LIMIT', 0, 500)
  call_in_batches('HDEL', unique_key_key, fields)
  call_in_batches('ZREM', unique_expiry_key, fields)
  return #fields
end

local more = drop_sessions() == 500
more = drop_keys() == 500 or more
delete_fields(find_older(finished_key, ARGV[4], left))
delete_fields(find_older(dead_letter_time_key, ARGV[5], left))
if ARGV[7] ~= '' then
  local excess = math.min(left, redis.call('ZCARD', finished_key) - tonumber(ARGV[7]))
  if excess > 0 then
    delete_fields(redis.call('ZRANGE', finished_key, 0, excess - 1))
  end
end
local results = find_older(result_time_key, ARGV[6], left)
call_in_batches('HDEL', result_key, results)
call_in_batches('ZREM', result_time_key, results)
write_lane_counts()
return { tonumber(ARGV[3]) - left + #results, more and 1 or 0 }
