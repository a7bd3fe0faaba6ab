-- Which jobs of a session somebody wants cancelled.
-- Inputs: ?1 session n
-- Result: seq, job id, fence, nonce
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT l.seq, j.id, l.fence, l.nonce FROM lease AS l CROSS JOIN job AS j ON j.seq = l.seq
WHERE l.session = ?1 AND l.cancel = 1
