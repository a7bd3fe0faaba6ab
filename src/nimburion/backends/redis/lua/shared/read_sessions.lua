-- Shared part of sessions and explain: lists the sessions that are not closed.
-- Keys: session_expiry session_state session_info session_leases session_vitals session_command
-- Provides: read_sessions() -> seven values per session: id, session_state, the worker's description of itself (JSON), microseconds
--   until it expires, number of leases, its last report (JSON) or false, its command or false
-- Cost: O(log n) per session, for n leases.
local function read_sessions()
  local expiries, ids, details = redis.call('ZRANGE', session_expiry_key, 0, -1, 'WITHSCORES'), {}, {}
  for i = 1, #expiries, 2 do
    push(ids, expiries[i])
  end
  local states, infos = get_in_batches(session_state_key, ids), get_in_batches(session_info_key, ids)
  local vitals, commands = get_in_batches(session_vitals_key, ids), get_in_batches(session_command_key, ids)
  for i, id in ipairs(ids) do
    local session4 = read_session_state(states[i]).session4
    push_pair(details, id, states[i])
    push_pair(details, infos[i], string.format('%.0f', tonumber(expiries[2 * i]) - alive_now))
    push(details, redis.call('ZLEXCOUNT', session_leases_key, '[' .. session4, range_end(session4)))
    push_pair(details, vitals[i], commands[i])
  end
  return details
end
