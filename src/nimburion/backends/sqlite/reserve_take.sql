-- Take leased jobs out of the line.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM ready WHERE (lane, rank, due, seq) IN (
    SELECT j.lane, -j.priority, j.due, j.seq
    FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
)
