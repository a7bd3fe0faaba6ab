-- Store new jobs that are due now and have no options, under ids of our own making: `enqueue_1` for most.
-- Inputs: the time or NULL; the lanes (queues, names, ranks); which of these each job stands in (NULL: all
--   in the first); end to end, the ids of 17 bytes and the digests of 16; the least and the greatest id; the
--   payloads end to end, and where each ends, from 0; since when a job of one of these ids can have ended
-- Result: whether they were stored; false when an id may be known: nothing was done, and `enqueue_1` is to
--   be asked
-- Locks: what it inserts
-- Atomic: as `enqueue_1`. One call to the server can be several of this, in one transaction
CREATE OR REPLACE FUNCTION nb.enqueue_plain_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea,
    p_digests bytea, p_least bytea, p_greatest bytea, p_payloads bytea, p_ends int4[], p_since int8
) RETURNS bool
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    lane_ids int4[] := nb.lanes_1(p_queues, p_names, p_ranks);
    many int4 := cardinality(p_ends) - 1;
BEGIN
    WITH j AS (
        INSERT INTO nb.job (due, created, lane, id, digest, payload)
        SELECT now, now, lane_ids[coalesce(p_lanes[n], 1)], substr(p_ids, n * 17 - 16, 17),
            substr(p_digests, n * 16 - 15, 16), substr(p_payloads, p_ends[n] + 1, p_ends[n + 1] - p_ends[n])
        FROM generate_series(1, many) n
        RETURNING seq, lane
    )
    INSERT INTO nb.ready (due, seq, lane, tried) SELECT now, seq, lane, 0 FROM j;
    -- Ids that were made one after another lie together: as a rule there is nothing between them.
    IF EXISTS (SELECT FROM nb.done d WHERE d.id BETWEEN p_least AND p_greatest AND d.finished >= p_since)
        AND EXISTS (
            SELECT FROM nb.done d
            WHERE d.id = ANY (ARRAY(SELECT substr(p_ids, n * 17 - 16, 17) FROM generate_series(1, many) n))
                AND d.finished >= p_since
        )
    THEN
        RAISE unique_violation;
    END IF;
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END $$;
