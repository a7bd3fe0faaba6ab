-- Forget what is old enough.
-- Inputs: the time or NULL; how long completed jobs, failed jobs and results are kept, in
--   microseconds, and how many completed ones (each NULL: for ever, all); at most so many
-- Result: how many records and results were forgotten
-- Locks: the rows it deletes; the two rows of `horizon`
-- Atomic: one transaction
CREATE OR REPLACE FUNCTION nb.prune_1(
    p_now int8, p_completed int8, p_failed int8, p_results int8, p_most int8, p_limit int4
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    room int4 := p_limit;
    one record;
BEGIN
    DELETE FROM nb.session s WHERE s.over AND s.dead_at < now - 86400000000;
    DELETE FROM nb.turn t WHERE NOT EXISTS (SELECT FROM nb.session s WHERE s.n = t.session AND NOT s.over);
    DELETE FROM nb.unique_key u WHERE u.until <= now;
    room := room - nb.pass_1('completed', now - p_completed, room);
    UPDATE nb.horizon r SET finished = c.finished, seq = c.seq FROM nb.horizon c  -- results go with it
    WHERE r.what = 'result' AND c.what = 'completed' AND (c.finished, c.seq) > (r.finished, r.seq);
    FOR one IN
        SELECT d.seq FROM nb.dead d WHERE d.finished < now - p_failed
        ORDER BY d.finished, d.seq LIMIT room FOR UPDATE SKIP LOCKED
    LOOP
        DELETE FROM nb.dead d WHERE d.seq = one.seq;
        DELETE FROM nb.job j WHERE j.seq = one.seq;
        PERFORM nb.forget_1(ARRAY[one.seq], 3::int2);
        room := room - 1;
    END LOOP;
    IF p_most IS NOT NULL THEN
        room := room - nb.prune_beyond_1(p_most, room);
    END IF;
    room := room - nb.pass_1('result', now - p_results, room);
    PERFORM nb.tally_1(now, 20000);
    DELETE FROM nb.done_other d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM nb.done_other o, nb.horizon h
        WHERE h.what = 'completed' AND o.finished < h.finished LIMIT 10000));
    DELETE FROM nb.result_other d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM nb.result_other o, nb.horizon h
        WHERE h.what = 'result' AND o.finished < h.finished LIMIT 10000));
    RETURN p_limit - room;
END $$;
