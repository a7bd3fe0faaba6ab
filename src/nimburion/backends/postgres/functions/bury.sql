-- End a job that nobody holds any more as failed: a dead letter, kept whole.
-- Inputs: the time; what was known of it as a row of `past`; the reason
-- Result: the lane of a job that gave a unique key back, else NULL
-- Locks: the job's own rows; its unique key
-- Atomic: of the caller's transaction, which took the job's place away
CREATE OR REPLACE FUNCTION nb.bury_1(p_now int8, p_past nb.past, p_reason text) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    PERFORM nb.remember_1(p_past);
    INSERT INTO nb.dead (seq, finished, reason) VALUES (p_past.seq, p_now, p_reason);
    SELECT seq, lane, unique_key INTO STRICT body FROM nb.job WHERE seq = p_past.seq;
    RETURN nb.free_key_1(body.seq, body.lane, body.unique_key);
END $$;
