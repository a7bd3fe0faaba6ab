-- End a job: 1 completed, 2 failed, 3 cancelled. Only a failed one keeps its payload.
-- Inputs: ?1 seq, ?2 state, ?3 now, ?4 reason, ?5 failures to add, ?6 losses to add, ?7 result,
--   ?8 fence and ?10 started_at of the delivery that ended, NULL: none did; ?9 nonce of the token
--   that settles it, NULL: none does
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job
SET state = ?2, finished_at = ?3, reason = ?4, failures = failures + ?5, lost = lost + ?6, result = ?7,
    payload = iif(?2 = 2, payload, NULL), fence = coalesce(?8, fence),
    settled = iif(?9 IS NULL, settled, ?8), nonce = coalesce(?9, nonce),
    started_at = coalesce(?10, started_at)
WHERE seq = ?1
