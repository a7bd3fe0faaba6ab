-- End the leases that this session holds under one token.
-- Inputs: ?1 session n, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM lease
WHERE session = ?1 AND seq IN (SELECT value FROM json_each(?2)) AND fence = ?3 AND nonce = ?4
