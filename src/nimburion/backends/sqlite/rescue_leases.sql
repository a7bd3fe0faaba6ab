-- Leases of sessions that are over.
-- Inputs: ?1 at most so many
-- Result: session, seq, lane, fence, nonce, at, cancel, whether the session had left, job id,
--   lost, failures
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.at, l.cancel, s.left_at IS NOT NULL,
    j.id, j.lost, j.failures
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.n
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.dead_at IS NOT NULL LIMIT ?1
