-- Lease jobs to a session.
-- Inputs: ?1 session n, ?2 exchange number, ?3 nonce, ?4 now, ?5 JSON array of seqs in rank order
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO lease (session, seq, lane, number, place, fence, nonce, at)
SELECT ?1, j.seq, j.lane, ?2, s.key, j.fence + 1, ?3, ?4
FROM json_each(?5) AS s CROSS JOIN job AS j ON j.seq = s.value
