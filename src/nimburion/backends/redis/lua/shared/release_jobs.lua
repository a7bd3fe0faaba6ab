-- Part of close_session and rescue: take jobs out of the hands of a session.
-- Keys: job turn alive gone
-- Inputs: fields, leases, turns
-- Result: take_back(field, lease, counts, token) -> whether it waits again (else a cancel was asked for), bury; `token`:
--   the one that gives it back, or nil
local function take_back(field, lease, counts, token)
  local lane = lane_of(string.sub(lease, 50, 53))
  end_lease(field, lease, lane)
  if string.byte(lease, 41) == 49 then
    finish(field, redis.call('HGET', job_key, field), lane, 'X', past_of(lease, counts, token))
    return false
  end
  wait_again(field, lease, lane, counts, nil, token)
  return true
end

-- A session is over: its id is remembered for a while, so that it never lives again.
local function bury(id, turn)
  redis.call('HSET', turn_key, id, string.sub(turn, 1, 28) .. 'd' .. now8 .. string.sub(turn, 38))
  redis.call('ZREM', alive_key, id)
  redis.call('ZADD', gone_key, now, id)
end
