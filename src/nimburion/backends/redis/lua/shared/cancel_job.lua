-- Shared part of cancel and fire: cancels a waiting job, or asks the worker of a running job to cancel it.
-- Keys: job attempt_state lease cancel_requested ready
-- Provides: cancel_job(field, body) -> 'cancelled', 'requested' (the job runs; the worker learns it from its next heartbeat) or
--   'finished'. The caller then calls write_buffer().
-- Cost: O(log n) for n waiting jobs.
local function cancel_job(field, body)
  if has_flag(body, FLAG_FINISHED) then
    return 'finished'
  end
  local lease = redis.call('HGET', lease_key, field)
  if lease then
    redis.call('HSET', lease_key, field, string.sub(lease, 1, 40) .. '1' .. string.sub(lease, 42))
    redis.call('HSET', cancel_requested_key, field, '1')
    return 'requested'
  end
  local due8, attempts, failed = string.sub(body, 13, 20), nil, false
  local state = redis.call('HGET', attempt_state_key, field)
  if state then
    push(drop_state, field)
    due8, failed = string.sub(state, 19, 26), string.sub(state, 1, 4) ~= '\0\0\0\0'
    attempts = due8 .. string.sub(state, 11, 18) .. string.sub(state, 1, 10) .. string.sub(state, 27, 46)
  else
    attempts = due8 .. NO_TIME .. NO_COUNTS .. '\0\0\0\0' .. NO_TOKEN
  end
  local lane, rank = get_lane(string.sub(body, 1, 4)), string.char(9 - string.byte(body, 22))
  local place = lane.number .. rank .. due8 .. field
  if redis.call('ZSCORE', ready_key, place) then
    push(drop_ready, place)
    local code = failed and 'R' or 'P'
    lane[code] = lane[code] - 1
  else
    local code = failed and 'T' or 'S'
    push(drop_due, due8 .. field .. lane.number .. rank .. code)
    lane[code] = lane[code] - 1
  end
  finish_job(field, body, lane, 'X', attempts)
  return 'cancelled'
end
