-- What an exchange handed out.
-- Inputs: ?1 session n, ?2 exchange number
-- Result: JSON array of seqs in rank order; the nonce
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(seq), max(nonce) FROM (
    SELECT seq, nonce FROM lease WHERE session = ?1 AND number = ?2 ORDER BY place
)
