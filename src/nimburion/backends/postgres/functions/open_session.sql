-- Begin a session, and say what limits its names have from now on.
-- Inputs: the time or NULL, the time that sessions live by or NULL; the id; how long it lives after
--   each heartbeat, in microseconds; what it says of itself, as JSON; its names and, side by side, their
--   limits (NULL: none)
-- Result: whether it lives; false when this id is over
-- Locks: the session's own number; the table `gate`, in EXCLUSIVE when a limit is new: exchanges hold
--   it in ROW SHARE, so that no lease is made between the count and the limit; then gates by name
-- Atomic: one transaction
CREATE OR REPLACE FUNCTION nb.open_session_1(
    p_now int8, p_mono int8, p_id text, p_ttl int8, p_info text, p_names text[], p_limits int4[]
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    one record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := nb.clock_1(p_now);
    IF EXISTS (SELECT FROM nb.session WHERE id = p_id) THEN
        UPDATE nb.session SET expires = coalesce(p_mono, now) + ttl
        WHERE id = p_id AND left_at IS NULL AND dead_at IS NULL;
        RETURN FOUND;
    END IF;
    INSERT INTO nb.session (ttl, expires, opened, id, names, info)
    VALUES (p_ttl, coalesce(p_mono, now) + p_ttl, now, p_id, p_names, p_info);
    IF EXISTS (
        SELECT FROM unnest(p_names, p_limits) AS l (name, bound) WHERE l.bound IS NOT NULL
            AND NOT EXISTS (SELECT FROM nb.gate g WHERE g.name = l.name)
    ) THEN
        LOCK TABLE nb.gate IN EXCLUSIVE MODE;
    END IF;
    FOR one IN
        SELECT l.name, l.bound FROM unnest(p_names, p_limits) AS l (name, bound) ORDER BY l.name
    LOOP
        IF one.bound IS NULL THEN
            DELETE FROM nb.gate WHERE name = one.name;
        ELSE
            INSERT INTO nb.gate AS g (name, bound, held)
            VALUES (one.name, one.bound, (
                SELECT count(*) FROM nb.lease l JOIN nb.lane a ON a.id = l.lane WHERE a.name = one.name
            ))
            ON CONFLICT (name) DO UPDATE SET bound = excluded.bound;
        END IF;
    END LOOP;
    RETURN true;
END $$;
