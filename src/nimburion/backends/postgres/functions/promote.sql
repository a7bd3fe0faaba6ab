-- Move jobs that became due into their lines, earliest first.
-- Inputs: the time; at most so many; a due time before which nothing is scheduled, as far as known
-- Result: how many, their lanes, and the earliest due time that is left
-- Locks: the rows it moves; those that another holds are passed over
-- Atomic: one statement moves them
CREATE OR REPLACE FUNCTION nb.promote_1(
    p_now int8, p_limit int4, p_floor int8, OUT moved int4, OUT lanes int4[], OUT next_due int8
) LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
BEGIN
    IF p_floor > p_now THEN  -- the clock was set back
        p_floor := -9223372036854775808;
    END IF;
    moved := 0;
    SELECT s.due INTO next_due FROM nb.scheduled s WHERE s.due >= p_floor ORDER BY s.due, s.seq LIMIT 1;
    IF next_due IS NULL OR next_due > p_now OR p_limit <= 0 THEN
        RETURN;
    END IF;
    WITH d AS (
        DELETE FROM nb.scheduled WHERE ctid = ANY (ARRAY(
            SELECT s.ctid FROM nb.scheduled s WHERE s.due >= p_floor AND s.due <= p_now
            ORDER BY s.due, s.seq LIMIT p_limit FOR UPDATE SKIP LOCKED
        )) RETURNING due, seq, lane, tried
    ), r AS (
        INSERT INTO nb.ready (due, seq, lane, tried) SELECT due, seq, lane, tried FROM d
        RETURNING lane
    )
    SELECT count(*), array_agg(DISTINCT lane) INTO moved, lanes FROM r;
    SELECT s.due INTO next_due FROM nb.scheduled s WHERE s.due >= p_floor ORDER BY s.due, s.seq LIMIT 1;
END $$;
