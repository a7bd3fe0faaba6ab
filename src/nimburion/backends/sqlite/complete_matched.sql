-- Which of these jobs this session holds under one token.
-- Inputs: ?1 session n, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: JSON array of seqs
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(l.seq) FROM json_each(?2) AS s
CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4
