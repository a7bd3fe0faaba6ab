-- Make failed jobs pending again.
-- Inputs: the time or NULL; the filter and its bounds as `seek_1`
-- Result: a row for each that was looked at: seq, id, whether it is pending now, and its queue; newest
--   first. One more without an id when more are left
-- Locks: the dead letters, those that another holds are passed over; their unique keys
-- Atomic: one transaction; who deletes the row of a dead letter is the one who replays it
CREATE OR REPLACE FUNCTION nb.replay_1(
    p_now int8, p_states text, p_queue text, p_name text, p_reason text, p_ids bytea[], p_after int8,
    p_limit int4
) RETURNS TABLE (seq int8, id bytea, replayed bool, queue text)
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    one record;
    looked int4 := 0;
BEGIN
    FOR one IN
        SELECT j.seq, j.id, j.lane, j.unique_key, a.queue, a.name,
            CAST(CAST(j.options AS json) ->> 'unique_for' AS float8) AS span
        FROM nb.dead d JOIN nb.job j ON j.seq = d.seq JOIN nb.lane a ON a.id = j.lane
        WHERE d.seq < p_after AND (p_states IS NULL OR strpos(p_states, 'F') > 0)
            AND (p_ids IS NULL OR j.id = ANY (p_ids))
            AND (p_queue IS NULL OR a.queue = p_queue) AND (p_name IS NULL OR a.name = p_name)
            AND (p_reason IS NULL OR d.reason = p_reason)
        ORDER BY d.seq DESC LIMIT p_limit + 1 FOR UPDATE OF d SKIP LOCKED
    LOOP
        looked := looked + 1;
        IF looked > p_limit THEN
            id := NULL;
            RETURN NEXT;
            EXIT;
        END IF;
        seq := one.seq;
        id := one.id;
        queue := one.queue;
        replayed := one.unique_key IS NULL
            OR nb.take_key_1(now, one.name, one.unique_key, one.seq, one.id, one.span);
        IF replayed THEN
            DELETE FROM nb.dead d WHERE d.seq = one.seq;
            UPDATE nb.past p SET due = now, failures = 0, lost = 0 WHERE p.seq = one.seq;
            PERFORM nb.stand_1(now, one.seq, now, one.lane, 1::int2);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
