-- Store one new job that is due now and has no unique key: `enqueue_1` in fewer steps.
-- Inputs: the time or NULL; queue, name and rank; id, digest, payload, options (NULL: none); since when
--   a job of this id can have ended
-- Result: whether it was stored; false when its lane is new or its id may be known: nothing was done,
--   and `enqueue_1` is to be asked
-- Locks: what it inserts
-- Atomic: as `enqueue_1`
CREATE OR REPLACE FUNCTION nb.enqueue_one_1(
    p_now int8, p_queue text, p_name text, p_rank int2, p_id bytea, p_digest bytea, p_payload bytea,
    p_options text, p_since int8
) RETURNS bool
LANGUAGE plpgsql
SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
DECLARE
    now int8 := p_now;
    at_lane int4;
    new_seq int8;
BEGIN
    SELECT l.id INTO at_lane FROM nb.lane l
    WHERE l.queue = p_queue AND l.name = p_name AND l.rank = p_rank AND NOT l.late;
    IF at_lane IS NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_current_xact_id();  -- before the clock is read, as in `clock_1`
    IF now IS NULL THEN
        now := CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8);
    END IF;
    INSERT INTO nb.job (due, created, lane, id, digest, options, payload)
    VALUES (now, now, at_lane, p_id, p_digest, p_options, p_payload)
    ON CONFLICT (id) DO NOTHING
    RETURNING seq INTO new_seq;
    IF new_seq IS NULL THEN
        RETURN false;
    END IF;
    INSERT INTO nb.ready (due, seq, lane, tried) VALUES (now, new_seq, at_lane, 0);
    -- The upper bound leaves out the days that are made ahead: to begin to look at one costs 2 µs.
    IF EXISTS (
        SELECT FROM nb.done d
        WHERE d.id = p_id AND d.finished >= p_since AND d.finished < now + 86400000000
    ) THEN
        PERFORM nb.unstore_1(ARRAY[new_seq]);
        RETURN false;
    END IF;
    RETURN true;
END $$;
