-- Complete many jobs at once, where all of their tokens hold.
-- Inputs: the time; the session; seqs, rising, and fences and nonces of the leases; results (NULL: none)
-- Result: the lanes whose leases ended; and of those with a unique key, side by side, seqs, lanes and
--   keys, for the caller to free
-- Locks: the jobs' own rows
-- Atomic: leases are deleted by session and seq, then the tokens they had are compared with those
--   that were named; if one differs the call fails with NB001, and the caller comes again, one
--   by one. Leases and bodies are joined by a hash whatever the planner believes of their numbers: on
--   tables that were empty when they were last vacuumed a loop errs by the square. What is called
--   here is planned under these settings too
CREATE OR REPLACE FUNCTION nb.settle_plain_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[],
    OUT ended int4[], OUT keyed int8[], OUT keyed_lanes int4[], OUT keys text[]
) LANGUAGE plpgsql
SET enable_nestloop TO off SET enable_hashjoin TO on AS $$
DECLARE
    seqs int8[];
    fences int4[];
    nonces bytea[];
    notes int2;
    any_tried bool;
BEGIN
    WITH l AS (
        DELETE FROM nb.lease WHERE session = p_session AND seq = ANY (p_seqs)
        RETURNING seq, due, at, fence, failures, lost, tried, noted, nonce, lane
    ), j AS (
        DELETE FROM nb.job WHERE seq = ANY (p_seqs)
        RETURNING seq, created, lane, id, digest, options, unique_key
    ), d AS (
        INSERT INTO nb.done (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled, options, history_at, history, fraction, message)
        SELECT x.seq, x.due, x.created, x.at, p_now, x.lane, x.failures, x.lost, 1, x.id, x.digest,
            int4send(x.fence) || x.nonce, x.options, (x.kept).history_at, (x.kept).history,
            (x.kept).fraction, (x.kept).message
        FROM (
            SELECT l.*, j.created, j.id, j.digest, j.options,
                CASE WHEN l.noted > 0 THEN nb.kept_1(l.seq, l.noted) END AS kept
            FROM l JOIN j ON j.seq = l.seq
        ) x
    ), k AS (
        SELECT array_agg(j.seq), array_agg(j.lane), array_agg(j.unique_key)
        FROM j WHERE j.unique_key IS NOT NULL
    ), h AS (
        SELECT array_agg(l.seq), array_agg(l.fence), array_agg(l.nonce), array_agg(l.lane), bit_or(l.noted),
            bool_or(l.tried > 0)
        FROM l
    )
    SELECT * INTO seqs, fences, nonces, ended, notes, any_tried, keyed, keyed_lanes, keys FROM h, k;
    IF (seqs = p_seqs AND fences = p_fences AND nonces = p_nonces) IS NOT TRUE THEN
        RAISE 'a lease that was named is not held' USING ERRCODE = 'NB001';
    END IF;
    IF any_tried OR notes > 0 THEN
        PERFORM nb.forget_1(seqs, notes);
    END IF;
    IF p_bodies IS NOT NULL THEN
        INSERT INTO nb.result (seq, finished, body)
        SELECT g.seq, p_now, g.body FROM unnest(p_seqs, p_bodies) AS g (seq, body)
        WHERE g.body IS NOT NULL;
    END IF;
END $$;
