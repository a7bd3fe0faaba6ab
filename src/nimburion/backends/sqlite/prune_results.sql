-- Drop results of jobs that ended before a time, oldest first.
-- Inputs: ?1 time, ?2 at most so many
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job SET result = NULL WHERE seq IN (
    SELECT seq FROM job WHERE result IS NOT NULL AND finished_at < ?1 ORDER BY finished_at LIMIT ?2
)
