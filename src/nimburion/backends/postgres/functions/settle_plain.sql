-- Complete many jobs at once, where all of their tokens hold.
-- Inputs: the time; the session; seqs, rising, and fences and nonces of the leases; results (NULL: none)
-- Result: the lanes whose leases ended; the lanes to ring
-- Locks: the jobs' own rows; their unique keys
-- Atomic: leases are deleted by session and seq, then the tokens they had are compared with those
--   that were named; if one differs the call fails with NB001, and the caller comes again, one
--   by one. No join is left to the planner here: on tables that were empty when they were last vacuumed
--   it errs by the square. A body is deleted where it was found: it never moves
CREATE OR REPLACE FUNCTION nb.settle_plain_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[],
    OUT ended int4[], OUT rung int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    seqs int8[];
    fences int4[];
    nonces bytea[];
    notes int2;
    any_tried bool;
    keyed int8[];
    keyed_lanes int4[];
    keys text[];
BEGIN
    WITH l AS (
        DELETE FROM nb.lease WHERE session = p_session AND seq = ANY (p_seqs)
        RETURNING seq, due, at, fence, failures, lost, tried, noted, nonce
    ), x AS (
        SELECT l.*, j.body, j.created, j.lane, j.id, j.digest, j.options, j.unique_key,
            CASE WHEN l.noted > 0 THEN nb.kept_1(l.seq, l.noted) END AS kept
        FROM l, LATERAL (SELECT j.ctid AS body, * FROM nb.job j WHERE j.seq = l.seq OFFSET 0) j
    ), j AS (
        DELETE FROM nb.job WHERE ctid = ANY (ARRAY(SELECT x.body FROM x))
    ), d AS (
        INSERT INTO nb.done (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled, options, history_at, history, fraction, message)
        SELECT x.seq, x.due, x.created, x.at, p_now, x.lane, x.failures, x.lost, 1, x.id, x.digest,
            int4send(x.fence) || x.nonce, x.options, (x.kept).history_at, (x.kept).history,
            (x.kept).fraction, (x.kept).message
        FROM x
    )
    SELECT array_agg(x.seq), array_agg(x.fence), array_agg(x.nonce), array_agg(x.lane),
        bit_or(x.noted), bool_or(x.tried > 0), array_agg(x.seq) FILTER (WHERE x.unique_key IS NOT NULL),
        array_agg(x.lane) FILTER (WHERE x.unique_key IS NOT NULL),
        array_agg(x.unique_key) FILTER (WHERE x.unique_key IS NOT NULL)
    INTO seqs, fences, nonces, ended, notes, any_tried, keyed, keyed_lanes, keys
    FROM x;
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
    IF keyed IS NOT NULL THEN
        rung := nb.free_keys_1(keyed, keyed_lanes, keys);
    END IF;
END $$;
