-- Give back the unique key of a job that ended, unless it is held for a stated time.
-- Inputs: its seq, lane and key (NULL: it has none)
-- Result: its lane when a key is free now, else NULL
-- Locks: the key
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.free_key_1(p_seq int8, p_lane int4, p_key text) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    IF p_key IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM nb.unique_key u USING nb.lane a
    WHERE a.id = p_lane AND u.name = a.name AND u.key = p_key AND u.seq = p_seq AND u.until IS NULL;
    RETURN CASE WHEN FOUND THEN p_lane END;
END $$;
