-- Let a job hold its unique key, unless another does.
-- Inputs: the time; name, key, seq and id of the job; for how many seconds it is held (NULL: until
--   the job ends)
-- Result: whether it holds it now
-- Locks: the key
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.take_key_1(
    p_now int8, p_name text, p_key text, p_seq int8, p_id bytea, p_span float8
) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nb.unique_key AS u (name, key, seq, until, id)
    VALUES (p_name, p_key, p_seq, p_now + CAST(round(CAST(p_span * 1000000 AS numeric)) AS int8), p_id)
    ON CONFLICT (name, key) DO UPDATE SET seq = excluded.seq, id = excluded.id,
        until = CASE WHEN u.id = excluded.id AND NOT coalesce(u.until <= p_now, false) THEN u.until
            ELSE excluded.until END
    WHERE u.id = excluded.id OR u.until <= p_now;
    RETURN FOUND;
END $$;
