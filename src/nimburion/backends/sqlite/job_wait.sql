-- Note that a delivery ended and the job waits again.
-- Inputs: ?1 seq, ?2 due, NULL: as it was, ?3 failures to add, ?4 losses to add, ?5 fence, ?6
--   nonce of the token that settles it, NULL: none does, ?7 started_at
-- Result: priority, due, failures
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job
SET due = coalesce(?2, due), failures = failures + ?3, lost = lost + ?4,
    fence = ?5, settled = iif(?6 IS NULL, settled, ?5), nonce = coalesce(?6, nonce),
    started_at = ?7
WHERE seq = ?1
RETURNING priority, due, failures
