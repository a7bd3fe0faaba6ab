-- send_command: sends a command to the worker of a session, or takes it back.
-- Keys: session_state session_command
-- Arguments: ARGV[3] session id, [4] command, '' to take it back, [5] '' to notify the session only
-- Reply: 1, or 0 if the session is unknown or closed
-- Atomic: one script. Each later heartbeat returns the command. The session is notified.
-- Cost: O(1).
local id, command, is_stored = ARGV[3], ARGV[4], ARGV[5] ~= ''
local state = redis.call('HGET', session_state_key, id)
if not state or read_session_state(state).status == SESSION_ENDED then
  return 0
end
if is_stored and command == '' then
  redis.call('HDEL', session_command_key, id)
elseif is_stored then
  redis.call('HSET', session_command_key, id, command)
end
notify_session(id)
return 1
