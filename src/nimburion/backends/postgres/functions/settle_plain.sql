-- Complete many jobs at once, where all of their tokens hold. No lease may be named twice.
-- Inputs: the time; the session; seqs, fences and nonces of the leases; results (NULL: none)
-- Result: whether it was done, else nothing was; the lanes whose leases ended; the lanes to ring
-- Locks: the jobs' own rows; their unique keys
-- Atomic: leases are deleted by session and seq, then the tokens they had are compared with those
--   that were named; if one differs, all is taken back, and the caller goes one by one. No join is
--   left to the planner here: on tables that were empty when they were last vacuumed it errs by
--   the square
CREATE OR REPLACE FUNCTION nb.settle_plain_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[],
    OUT settled bool, OUT ended int4[], OUT rung int4[]
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
        SELECT l.*, j.created, j.lane, j.id, j.digest, j.options, j.unique_key
        FROM l, LATERAL (SELECT * FROM nb.job j WHERE j.seq = l.seq OFFSET 0) j
    ), j AS (
        DELETE FROM nb.job WHERE seq = ANY (p_seqs)
    ), d AS (
        INSERT INTO nb.done (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled, options, history_at, history, fraction, message)
        SELECT x.seq, x.due, x.created, x.at, p_now, x.lane, x.failures, x.lost, 1, x.id, x.digest,
            int4send(x.fence) || x.nonce, x.options,
            CASE WHEN x.noted & 1 > 0 THEN (SELECT array_agg(e.at ORDER BY n) FROM nb.attempt_error e WHERE e.seq = x.seq) END,
            CASE WHEN x.noted & 1 > 0 THEN (SELECT array_agg(e.body ORDER BY n) FROM nb.attempt_error e WHERE e.seq = x.seq) END,
            CASE WHEN x.noted & 2 > 0 THEN (SELECT p.fraction FROM nb.progress p WHERE p.seq = x.seq) END,
            CASE WHEN x.noted & 2 > 0 THEN (SELECT p.message FROM nb.progress p WHERE p.seq = x.seq) END
        FROM x
    )
    SELECT array_agg(x.seq ORDER BY x.seq), array_agg(x.fence ORDER BY x.seq),
        array_agg(x.nonce ORDER BY x.seq), bit_or(x.noted), bool_or(x.tried > 0),
        array_agg(x.seq) FILTER (WHERE x.unique_key IS NOT NULL),
        array_agg(x.lane) FILTER (WHERE x.unique_key IS NOT NULL),
        array_agg(x.unique_key) FILTER (WHERE x.unique_key IS NOT NULL), array_agg(x.lane)
    INTO seqs, fences, nonces, notes, any_tried, keyed, keyed_lanes, keys, ended
    FROM x;
    SELECT array_agg(g.seq ORDER BY g.seq) = seqs AND array_agg(g.fence ORDER BY g.seq) = fences
        AND array_agg(g.nonce ORDER BY g.seq) = nonces
    INTO settled
    FROM unnest(p_seqs, p_fences, p_nonces) AS g (seq, fence, nonce);
    IF settled IS NOT TRUE THEN
        RAISE no_data_found;
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
EXCEPTION WHEN no_data_found THEN
    settled := false;
    ended := NULL;
END $$;
