-- How many jobs are kept in each state.
-- Inputs: the time; the queue (NULL: any)
-- Result: rows of a letter as `letter_1` and a number, several for one letter
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.counts_1(p_now int8, p_queue text) RETURNS TABLE (letter text, number int8)
LANGUAGE sql STABLE AS $$
    WITH lanes AS (SELECT a.id FROM nb.lane a WHERE p_queue IS NULL OR a.queue = p_queue)
    SELECT CASE WHEN r.tried = 2 THEN 'R' ELSE 'P' END, count(*) FROM nb.ready r
    WHERE r.lane IN (SELECT id FROM lanes) GROUP BY 1
    UNION ALL
    SELECT CASE WHEN s.tried = 2 THEN 'R' WHEN s.due > p_now THEN 'S' ELSE 'P' END, count(*)
    FROM nb.scheduled s WHERE s.lane IN (SELECT id FROM lanes) GROUP BY 1
    UNION ALL
    SELECT 'L', count(*) FROM nb.lease l WHERE l.lane IN (SELECT id FROM lanes)
    UNION ALL
    SELECT 'F', count(*) FROM nb.dead d JOIN nb.job j ON j.seq = d.seq
    WHERE j.lane IN (SELECT id FROM lanes)
    UNION ALL
    SELECT CASE e.state WHEN 1 THEN 'C' ELSE 'X' END, e.number
    FROM nb.ended_counts_1(CASE WHEN p_queue IS NOT NULL THEN ARRAY(SELECT id FROM lanes) END) e
$$;
