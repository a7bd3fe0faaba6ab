-- Forget finished jobs for good.
-- Inputs: the time or NULL; the filter as `seek_1`; at most so many
-- Result: their ids
-- Locks: the turn of `tally_1` and the horizon, shared: what is being forgotten is not deleted too; the rows it deletes
-- Atomic: one transaction; a job whose end was deleted or replayed meanwhile is passed over
CREATE OR REPLACE FUNCTION nb.delete_1(
    p_now int8, p_states text, p_queue text, p_name text, p_reason text, p_ids bytea[], p_limit int4
) RETURNS SETOF bytea
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    one record;
    ended nb.done;
    job_id bytea;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('nb.tally_1', 7044));
    PERFORM FROM nb.horizon WHERE what = 'completed' FOR SHARE;
    FOR one IN
        SELECT * FROM nb.seek_1(now, p_states, p_queue, p_name, p_reason, p_ids, 9223372036854775807, p_limit)
    LOOP
        IF one.letter = 'F' THEN
            DELETE FROM nb.dead d WHERE d.seq = one.seq;
            CONTINUE WHEN NOT FOUND;
            DELETE FROM nb.job j WHERE j.seq = one.seq RETURNING j.id INTO job_id;
            PERFORM nb.forget_1(ARRAY[one.seq], 3::int2);
        ELSE
            DELETE FROM nb.done d WHERE d.id = one.id AND d.seq = one.seq RETURNING d.* INTO ended;
            CONTINUE WHEN NOT FOUND;
            DELETE FROM nb.result r WHERE r.seq = one.seq;
            PERFORM nb.untally_1(ended.finished, ended.lane, ended.state);
            job_id := ended.id;
        END IF;
        RETURN NEXT job_id;
    END LOOP;
END $$;
