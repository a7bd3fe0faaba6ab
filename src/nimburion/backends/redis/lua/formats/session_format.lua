-- Shared part: reads and makes states of sessions, the records of the hash `session_state` (layout: see record_format.lua).
-- Provides: read_session_state(record), make_session_state(session), read_open_session(record)
local function read_session_state(record)
  local session4, number8, ttl8, opened8, status, ended8, rest = unpack_struct('>c4c8c8c8c1c8', record)
  return {
    session4 = session4, number8 = number8, ttl8 = ttl8, opened8 = opened8, status = status, ended8 = ended8,
    codes = sub(record, rest),
  }
end

local function make_session_state(session)
  return session.session4 .. session.number8 .. session.ttl8 .. session.opened8 .. session.status .. session.ended8
    .. session.codes
end

-- Return the state of a session if it is open, else nil.
local function read_open_session(record)
  local session = record and read_session_state(record)
  return session and session.status == SESSION_ALIVE and session or nil
end
