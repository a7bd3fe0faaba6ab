-- Whether a job of this id has ended and is kept, or was until lately.
-- Inputs: the id; since when it can have ended; the time
-- Result: whether it has
-- Locks: none; reads a snapshot
-- Atomic: one statement. The upper bound leaves out the days that are made ahead: to begin to look at one
--   costs 2 µs
CREATE OR REPLACE FUNCTION nb.has_ended_1(p_id bytea, p_since int8, p_now int8) RETURNS bool
LANGUAGE plpgsql
SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM nb.done d
        WHERE d.id = p_id AND d.finished >= p_since AND d.finished < p_now + 86400000000
    );
END $$;
