-- Count once what ended since the last time, so that `counts_1` need not count all that is kept.
-- Inputs: the time; fewer than so many are left to the next time
-- Result: how many were counted; looks each half a minute, whoever calls how often
-- Locks: a turn of its own, which deletions of history share; who does not get it does nothing
-- Atomic: of the caller's transaction. What ended before a moment is counted when every transaction
--   that began up to a minute after it is over: then nothing can come to it any more. So a clock that is set
--   back by less does no harm
CREATE OR REPLACE FUNCTION nb.tally_1(p_now int8, p_least int4) RETURNS int8
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    next record;
    first int8;
    counted int8 := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('nb.tally_1', 7044)) THEN
        RETURN 0;
    END IF;
    SELECT * INTO STRICT next FROM nb.mark;
    IF next.upto > p_now - 90000000 THEN
        RETURN 0;
    END IF;
    IF next.xid < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS int8) THEN
        SELECT GREATEST(max(t.upto), (SELECT h.finished FROM nb.horizon h WHERE h.what = 'completed'))
        INTO first FROM nb.tally t;
        WITH new AS (
            SELECT d.lane, d.state, count(*) AS number FROM nb.done d, nb.horizon h
            WHERE h.what = 'completed' AND d.finished >= first AND d.finished < next.upto
                AND (d.finished, d.seq) > (h.finished, h.seq) GROUP BY d.lane, d.state
        ), i AS (
            INSERT INTO nb.tally (since, upto, lane, state, number)
            SELECT first, next.upto, new.lane, new.state, new.number FROM new
            WHERE (SELECT sum(number) FROM new) >= p_least
        )
        SELECT coalesce(sum(number), 0) INTO counted FROM new;
    ELSIF next.xid < 9223372036854775807 THEN
        RETURN 0;
    END IF;
    DELETE FROM nb.tally t USING nb.horizon h WHERE h.what = 'completed' AND t.upto <= h.finished;
    UPDATE nb.mark SET upto = p_now - 60000000,
        xid = CAST(CAST(pg_current_xact_id() AS text) AS int8);
    RETURN CASE WHEN counted >= p_least THEN counted ELSE 0 END;
END $$;
