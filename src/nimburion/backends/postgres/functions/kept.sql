-- What was noted of a job besides its body.
-- Inputs: its seq; 1: it has a history, 2: it has progress
-- Result: both; NULL where it has none
-- Locks: none; reads a snapshot
-- Atomic: of the caller's transaction. A function, so that who moves jobs without notes has no part of
--   it in his plan
CREATE OR REPLACE FUNCTION nb.kept_1(p_seq int8, p_noted int2) RETURNS nb.kept
LANGUAGE plpgsql STABLE AS $$
DECLARE
    kept nb.kept;
BEGIN
    IF p_noted & 1 > 0 THEN
        SELECT array_agg(e.at ORDER BY e.n), array_agg(e.body ORDER BY e.n)
        INTO kept.history_at, kept.history FROM nb.attempt_error e WHERE e.seq = p_seq;
    END IF;
    IF p_noted & 2 > 0 THEN
        SELECT p.fraction, p.message INTO kept.fraction, kept.message FROM nb.progress p WHERE p.seq = p_seq;
    END IF;
    RETURN kept;
END $$;
