-- Forget the completed and cancelled jobs that ended first, where more are kept than may be.
-- Inputs: how many may be kept; at most so many are forgotten
-- Result: how many were
-- Locks: the turn of `tally_1`, shared; the rows it deletes
-- Atomic: one statement deletes them
CREATE OR REPLACE FUNCTION nb.prune_beyond_1(p_most int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    kept int8;
    pruned int4;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('nb.tally_1', 7044));
    SELECT * INTO h FROM nb.horizon WHERE what = 'completed';
    SELECT sum(e.number) INTO kept FROM nb.ended_counts_1(NULL) e;
    IF kept <= p_most OR p_limit <= 0 THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM nb.done d USING (
            SELECT o.finished, o.seq FROM nb.done o
            WHERE o.finished >= h.finished AND (o.finished, o.seq) > (h.finished, h.seq)
            ORDER BY o.finished, o.seq LIMIT LEAST(p_limit, kept - p_most)
        ) o WHERE d.finished = o.finished AND d.seq = o.seq RETURNING d.seq, d.finished, d.lane, d.state
    ), results AS (
        DELETE FROM nb.result r USING old o WHERE r.seq = o.seq AND r.finished = o.finished
    )
    SELECT count(*), count(nb.untally_1(old.finished, old.lane, old.state)) INTO pruned, kept FROM old;
    RETURN pruned;
END $$;
