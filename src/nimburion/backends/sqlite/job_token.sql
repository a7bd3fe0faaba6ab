-- The token that settled a job last.
-- Inputs: ?1 seq, ?2 job id
-- Result: fence, nonce, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT settled, nonce FROM job WHERE seq = ?1 AND id = ?2
