-- Leases of sessions that are over.
-- Inputs: ?1 at most so many, ?2 losses that make a suspect
-- Result: session, seq, lane, fence, nonce, at, cancel, whether the job is spared the loss (the
--   session had left, or a suspect was held beside other jobs and so had not begun), job id, lost,
--   failures
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.at, l.cancel,
    s.left_at IS NOT NULL OR (
        j.lost >= ?2
        AND EXISTS (SELECT 1 FROM lease AS o WHERE o.session = l.session AND o.seq <> l.seq)
    ),
    j.id, j.lost, j.failures
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.n
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.dead_at IS NOT NULL LIMIT ?1
