-- End a job that nobody holds any more as completed or cancelled. Its payload goes.
-- Inputs: the time; what was known of it as a row of `past`; 1 completed, 3 cancelled; the reason;
--   the result, NULL for none
-- Result: the lane of a job that gave a unique key back, else NULL
-- Locks: the job's own rows; its unique key
-- Atomic: of the caller's transaction, which took the job's place away
CREATE OR REPLACE FUNCTION nb.finish_1(
    p_now int8, p_past nb.past, p_state int2, p_reason text, p_result bytea
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    DELETE FROM nb.job WHERE seq = p_past.seq
    RETURNING seq, lane, id, digest, created, unique_key, options,
        CASE WHEN p_past.noted > 0 THEN nb.kept_1(seq, p_past.noted) END AS kept INTO STRICT body;
    INSERT INTO nb.done (seq, due, created, started, finished, lane, failures, lost, state, id, digest,
        settled, reason, options, history_at, history, fraction, message)
    VALUES (body.seq, p_past.due, body.created, p_past.started, p_now, body.lane, p_past.failures,
        p_past.lost, p_state, body.id, body.digest, p_past.settled, p_reason, body.options,
        (body.kept).history_at, (body.kept).history, (body.kept).fraction, (body.kept).message);
    IF p_result IS NOT NULL THEN
        INSERT INTO nb.result (seq, finished, body) VALUES (body.seq, p_now, p_result);
    END IF;
    PERFORM nb.forget_1(ARRAY[body.seq], p_past.noted);
    RETURN nb.free_key_1(body.seq, body.lane, body.unique_key);
END $$;
