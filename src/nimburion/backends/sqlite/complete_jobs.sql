-- Complete the jobs that this session holds under one token.
-- Inputs: ?1 now, ?2 session n, ?3 JSON array of seqs, ?4 fence, ?5 nonce
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job
SET state = 1, finished_at = ?1, payload = NULL, fence = ?4, settled = ?4, nonce = ?5,
    started_at = (
        SELECT l.at FROM lease AS l WHERE l.session = ?2 AND l.nonce = ?5 AND l.seq IN (
            SELECT value FROM json_each(?3)
        ) LIMIT 1
    )
WHERE seq IN (
    SELECT l.seq FROM json_each(?3) AS s
    CROSS JOIN lease AS l ON l.session = ?2 AND l.seq = s.value AND l.fence = ?4 AND l.nonce = ?5
)
