-- sessions: returns all sessions that are not closed.
-- Keys: session_expiry
-- Reply: seven values per session (see list_sessions.lua)
-- Atomic: reads only.
-- Cost: O(log n) per session, for n leases.
return list_sessions()
