-- list_sessions: returns all sessions that are not closed.
-- Keys: session_expiry
-- Reply: seven values per session (see read_sessions.lua)
-- Atomic: reads only.
-- Cost: O(log n) per session, for n leases.
return read_sessions()
