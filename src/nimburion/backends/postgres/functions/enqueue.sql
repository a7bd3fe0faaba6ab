-- Store new jobs: all of them hopefully at once, else job by job.
-- Inputs: the time or NULL; the lanes (queues, names, ranks); then by job: which of these lanes,
--   id, digest, payload, options (NULL: none has any), due time (NULL: none has one), delay in
--   microseconds (NULL: none has any), unique key, for how long it is held, whether its holder will
--   do (these three NULL: none has a key); and since when a job of one of these ids can have ended
-- Result: a letter for each job (created, exists, x: conflict, taken, refused), NULL when all were
--   created; and the ids that hold the keys
-- Locks: unique keys in the order of name and key, then what it inserts
-- Atomic: one transaction; that no job of an id has ended is looked at after it was inserted: the
--   insert waits for whoever is just ending one
CREATE OR REPLACE FUNCTION nb.enqueue_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[],
    p_digests bytea[], p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[],
    p_keys text[], p_spans int8[], p_lenient bool[], p_since int8,
    OUT letters text, OUT holders bytea[]
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    lane_ids int4[] := nb.lanes_1(p_queues, p_names, p_ranks);
BEGIN
    IF p_keys IS NULL AND (p_ats IS NULL OR NOT EXISTS (SELECT FROM unnest(p_ats) a WHERE a < now))
    THEN
        BEGIN
            WITH j AS (
                INSERT INTO nb.job (due, created, lane, id, digest, options, payload)
                SELECT coalesce(g.at, now + coalesce(g.after, 0)), now, lane_ids[g.lane], g.id,
                    g.digest, g.options, g.payload
                FROM unnest(p_lanes, p_ids, p_digests, p_options, p_payloads, p_ats, p_afters)
                    AS g (lane, id, digest, options, payload, at, after)
                RETURNING seq, due, lane
            ), s AS (
                INSERT INTO nb.scheduled (due, seq, lane, tried)
                SELECT due, seq, lane, 0 FROM j WHERE due > now
            )
            INSERT INTO nb.ready (due, seq, lane, tried) SELECT due, seq, lane, 0 FROM j WHERE due <= now;
            IF NOT EXISTS (SELECT FROM nb.done d WHERE d.id = ANY (p_ids) AND d.finished >= p_since) THEN
                RETURN;
            END IF;
            RAISE unique_violation;
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END IF;
    SELECT c.letters, c.holders INTO letters, holders FROM nb.enqueue_each_1(
        now, p_names, lane_ids, p_lanes, p_ids, p_digests, p_payloads, p_options, p_ats, p_afters,
        p_keys, p_spans, p_lenient, p_since
    ) c;
END $$;
