-- Every lane that holds an unfinished job, and every queue that is paused.
-- Inputs: the time
-- Result: rows: queue, name (NULL: it is paused), due and not processing, waiting for their time,
--   processing, how long the longest due has been (NULL: none is), whether it is paused
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.queues_2(p_now int8) RETURNS TABLE (
    queue text, name text, size int8, scheduled int8, processing int8, age int8, paused bool
)
LANGUAGE sql STABLE AS $$
    WITH unfinished AS (
        SELECT r.lane, count(*) AS due, 0::int8 AS later, 0::int8 AS held, min(r.due) AS oldest
        FROM nb.ready r GROUP BY r.lane
        UNION ALL
        SELECT s.lane, count(*) FILTER (WHERE s.due <= p_now), count(*) FILTER (WHERE s.due > p_now), 0,
            min(s.due) FILTER (WHERE s.due <= p_now)
        FROM nb.scheduled s GROUP BY s.lane
        UNION ALL
        SELECT l.lane, 0, 0, count(*), NULL FROM nb.lease l GROUP BY l.lane
    )
    SELECT a.queue, a.name, CAST(sum(u.due) AS int8), CAST(sum(u.later) AS int8), CAST(sum(u.held) AS int8),
        p_now - min(u.oldest), false
    FROM unfinished u JOIN nb.lane a ON a.id = u.lane GROUP BY a.queue, a.name
    UNION ALL
    SELECT p.queue, NULL, 0, 0, 0, NULL, true FROM nb.paused p
$$;
