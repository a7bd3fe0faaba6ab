-- How many jobs stand in each state.
-- Inputs: ?1 queue, NULL: all, ?2 now
-- Result: pending, scheduled, processing, retrying, completed, failed, cancelled
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
WITH
served AS (SELECT id FROM lane WHERE ?1 IS NULL OR queue = ?1),
waiting AS (
    SELECT retry, 1 AS ready, count(*) AS many FROM ready
    WHERE ?1 IS NULL OR lane IN served GROUP BY retry
    UNION ALL
    SELECT retry, due <= ?2, count(*) FROM scheduled
    WHERE ?1 IS NULL OR lane IN served GROUP BY retry, due <= ?2
),
finished AS (
    SELECT state, count(*) AS many FROM job INDEXED BY job_finished
    WHERE state > 0 AND (?1 IS NULL OR lane IN served) GROUP BY state
)
SELECT
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE retry = 0 AND ready),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE retry = 0 AND NOT ready),
    (SELECT count(*) FROM lease WHERE ?1 IS NULL OR lane IN served),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE retry = 1),
    coalesce((SELECT many FROM finished WHERE state = 1), 0),
    coalesce((SELECT many FROM finished WHERE state = 2), 0),
    coalesce((SELECT many FROM finished WHERE state = 3), 0)
