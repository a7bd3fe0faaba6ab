-- Lock the unique keys that jobs of an enqueue call ask for; those that nobody holds are set to seq 0.
-- Inputs: the time; the names of the lanes; by job: its lane, id and key
-- Result: none
-- Locks: the keys, in the order of name and key, until the transaction ends
-- Atomic: one statement; an insert that meets an older row locks that one
CREATE OR REPLACE FUNCTION nb.lock_keys_1(
    p_now int8, p_names text[], p_lanes int4[], p_ids bytea[], p_keys text[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO nb.unique_key AS u (name, key, seq, until, id)
    SELECT DISTINCT ON (p_names[g.lane], g.key) p_names[g.lane], g.key, 0, CAST(NULL AS int8), g.id
    FROM unnest(p_lanes, p_ids, p_keys) AS g (lane, id, key)
    WHERE g.key IS NOT NULL
    ORDER BY p_names[g.lane], g.key
    ON CONFLICT (name, key) DO UPDATE SET seq = CASE WHEN u.until <= p_now THEN 0 ELSE u.seq END;
END $$;
