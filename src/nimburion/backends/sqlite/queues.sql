-- Every lane that holds an unfinished job, and every queue that is paused.
-- Inputs: ?1 now
-- Result: queue, name (NULL: it is paused), due and waiting, not due, processing, earliest due time
--   of those due, paused
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
WITH standing AS (
    SELECT lane, count(*) AS size, 0 AS later, 0 AS running, min(due) AS oldest
    FROM ready GROUP BY lane
    UNION ALL
    SELECT lane, sum(due <= ?1), sum(due > ?1), 0, min(iif(due <= ?1, due, NULL))
    FROM scheduled GROUP BY lane
    UNION ALL
    SELECT lane, 0, 0, count(*), NULL FROM lease GROUP BY lane
)
SELECT lane.queue, lane.name, size, later, running, oldest, 0
FROM standing JOIN lane ON lane.id = standing.lane
UNION ALL
SELECT queue, NULL, 0, 0, 0, NULL, 1 FROM paused
