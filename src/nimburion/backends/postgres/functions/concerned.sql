-- Lock the limits that an exchange may change, where there are any.
-- Inputs: the time; the session; seqs that it settles; queues and names that are asked for; floors by
--   lane
-- Result: the names that are locked: of jobs that it settles, of lanes asked for that hold jobs, and of
--   jobs that are to be promoted. An idle fleet must not queue up at a limit
-- Locks: gates, in the order of their names. The caller holds the table, so that no new one is made
-- Atomic: held until the transaction ends; who reads a limit then reads its latest state
CREATE OR REPLACE FUNCTION nb.concerned_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_floor_lanes int4[],
    p_floors int8[]
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    concerned text[];
BEGIN
    concerned := ARRAY(
        SELECT a.name FROM nb.lease l JOIN nb.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.seq = ANY (p_seqs)
        UNION
        SELECT a.name FROM nb.scheduled s JOIN nb.lane a ON a.id = s.lane WHERE s.due <= p_now
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        JOIN nb.lane a ON a.queue = w.queue AND a.name = w.name
        LEFT JOIN unnest(p_floor_lanes, p_floors) AS f (lane, floor) ON f.lane = a.id
        WHERE EXISTS (
            SELECT FROM nb.ready r
            WHERE r.lane = a.id AND (r.due >= f.floor OR f.floor IS NULL OR a.late OR f.floor > p_now)
        )
    );
    PERFORM FROM nb.gate WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    RETURN concerned;
END $$;
