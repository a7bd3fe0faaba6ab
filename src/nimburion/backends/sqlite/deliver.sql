-- The jobs with these places, in one row: each step of a statement gives up the interpreter lock
-- and may wait long to get it back.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON: [[seq, id, lane, priority, failures, lost, due, created_at, fence, length of
--   payload, options], …]; the payloads end to end
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    json_group_array(json_array(
        j.seq, j.id, j.lane, j.priority, j.failures, j.lost, j.due, j.created_at, j.fence,
        length(j.payload), j.options
    )),
    CAST(group_concat(j.payload, '') AS BLOB)
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
