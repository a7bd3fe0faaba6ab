-- Part of cancel and fire: end a job that waits, or ask the worker of one that runs.
-- Keys: job state lease cancel ready
-- Inputs: a field and its body
-- Result: cancel(field, body) -> cancelled, requested or finished; write_ledger() of write_buffer.lua writes what waits there
local function cancel(field, body)
  if has(body, FINISHED) then
    return 'finished'
  end
  local lease = redis.call('HGET', lease_key, field)
  if lease then
    redis.call('HSET', lease_key, field, string.sub(lease, 1, 40) .. '1' .. string.sub(lease, 42))
    redis.call('HSET', cancel_key, field, '1')
    return 'requested'
  end
  local due8, past, failed = string.sub(body, 13, 20), nil, false
  local state = redis.call('HGET', state_key, field)
  if state then
    push(drop_state, field)
    due8, failed = string.sub(state, 19, 26), string.sub(state, 1, 4) ~= '\0\0\0\0'
    past = due8 .. string.sub(state, 11, 18) .. string.sub(state, 1, 10) .. string.sub(state, 27, 46)
  else
    past = due8 .. NO_TIME .. FRESH .. '\0\0\0\0' .. NOTHING20
  end
  local lane, rank = lane_of(string.sub(body, 1, 4)), string.char(9 - string.byte(body, 22))
  local place = lane.number .. rank .. due8 .. field
  if redis.call('ZSCORE', ready_key, place) then
    push(drop_ready, place)
    local letter = failed and 'R' or 'P'
    lane[letter] = lane[letter] - 1
  else
    local letter = failed and 'T' or 'S'
    push(drop_due, due8 .. field .. lane.number .. rank .. letter)
    lane[letter] = lane[letter] - 1
  end
  finish(field, body, lane, 'X', past)
  return 'cancelled'
end
