-- Every session that is not dead, oldest first.
-- Inputs: none
-- Result: id, info, ttl, expires, boot, opened_at, left_at, how many leases
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id, info, ttl, expires, boot, opened_at, left_at,
    (SELECT count(*) FROM lease WHERE lease.session = session.n)
FROM session WHERE dead_at IS NULL ORDER BY opened_at, n
