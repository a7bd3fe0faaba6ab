-- How large jobs are.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON: [[lane, bytes of payload and options], …], in the order of the seqs
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(json_array(j.lane, length(j.payload) + coalesce(length(j.options), 0)))
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
