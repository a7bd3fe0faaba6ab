-- Take the jobs that were put into the line from those set aside.
-- Inputs: ?1 now, ?2 at most so many, the same as for promote_copy
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM scheduled WHERE (due, seq) IN (
    SELECT due, seq FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
)
