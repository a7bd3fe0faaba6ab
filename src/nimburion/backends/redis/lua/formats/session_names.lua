-- Shared part: finds the id and the host of a session by its number.
-- Keys: session_id
-- Provides: find_session(session4) -> id NUL host; false if the session ended more than a day ago
--   get_session_id(session): the id in a result of find_session
-- Cost: one HGET per session.
local known_sessions = {}

local function find_session(session4)
  local session = known_sessions[session4]
  if session == nil then
    session = redis.call('HGET', session_id_key, session4)
    known_sessions[session4] = session
  end
  return session
end

local function get_session_id(session)
  return string.match(session, '^[^%z]*')
end
