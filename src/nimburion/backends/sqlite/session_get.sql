-- A session, dead or alive.
-- Inputs: ?1 session id
-- Result: n, info, ttl, left_at, dead_at, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT n, info, ttl, left_at, dead_at FROM session WHERE id = ?1
