-- Settle: what became of attempts.
--
-- Atomic: part of the caller's transaction. A lease is deleted by session, seq, fence and nonce, so a token settles once.
-- Locks: the job's own rows and its unique key. `settle_plain` completes many jobs at once and fails as a whole (NB001) where
-- one lease is not held under its token; the caller then repeats the exchange with `settle_each`.

-- name: settle_plain
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
CREATE OR REPLACE FUNCTION {schema}.settle_plain_1(
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
        DELETE FROM {schema}.lease WHERE session = p_session AND seq = ANY (p_seqs)
        RETURNING seq, due, at, fence, failures, lost, tried, noted, nonce, lane
    ), j AS (
        DELETE FROM {schema}.job WHERE seq = ANY (p_seqs)
        RETURNING seq, created, lane, id, digest, options, unique_key
    ), d AS (
        INSERT INTO {schema}.done (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled, options, history_at, history, fraction, message)
        SELECT x.seq, x.due, x.created, x.at, p_now, x.lane, x.failures, x.lost, 1, x.id, x.digest,
            int4send(x.fence) || x.nonce, x.options, (x.kept).history_at, (x.kept).history,
            (x.kept).fraction, (x.kept).message
        FROM (
            SELECT l.*, j.created, j.id, j.digest, j.options,
                CASE WHEN l.noted > 0 THEN {schema}.kept_1(l.seq, l.noted) END AS kept
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
        PERFORM {schema}.forget_1(seqs, notes);
    END IF;
    IF p_bodies IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished, body)
        SELECT g.seq, p_now, g.body FROM unnest(p_seqs, p_bodies) AS g (seq, body)
        WHERE g.body IS NOT NULL;
    END IF;
END $$;

-- name: settle_each
-- Apply settlements one after the other.
-- Inputs: as `settle_1`, each an array but for the letters, which are one text (NULL: all completed)
-- Result: a letter for each: done, already, stale; the lanes whose leases ended; the lanes to ring
-- Locks: the jobs' own rows; their unique keys, one after the other
CREATE OR REPLACE FUNCTION {schema}.settle_each_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[],
    p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[], p_fractions float8[],
    OUT letters text, OUT ended int4[], OUT rung int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    g record;
    one record;
    letter_list text[] := '{}';
BEGIN
    FOR g IN
        SELECT * FROM unnest(string_to_array(coalesce(p_kinds, repeat('c', cardinality(p_seqs))), NULL), p_seqs, p_ids, p_fences, p_nonces, p_delays,
            p_texts, p_bodies, p_fractions)
            AS u (kind, seq, id, fence, nonce, delay, said, body, fraction)
    LOOP
        SELECT * INTO one FROM {schema}.settle_1(p_now, p_session, g.kind, g.seq, g.id, g.fence, g.nonce,
            g.delay, g.said, g.body, g.fraction);
        letter_list := letter_list || one.letter;
        ended := CASE WHEN one.ended IS NULL THEN ended ELSE ended || one.ended END;
        rung := CASE WHEN one.rung IS NULL THEN rung ELSE rung || one.rung END;
    END LOOP;
    letters := array_to_string(letter_list, '');
END $$;

-- name: settle
-- Apply one settlement, if its whole token holds.
-- Inputs: the time; the session; the letter of what happened (completed, retried, failed, given back:
--   l, snoozed: s, x: cancelled, progressed); seq, id, fence and nonce of the lease; then, each NULL
--   where there is none: delay in microseconds, reason or message, result or error, fraction
-- Result: done, already or stale; the lane whose lease ended; the lane to ring, NULL for none
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so it settles once
CREATE OR REPLACE FUNCTION {schema}.settle_1(
    p_now int8, p_session int4, p_kind text, p_seq int8, p_id bytea, p_fence int4, p_nonce bytea,
    p_delay int8, p_text text, p_body bytea, p_fraction float8,
    OUT letter text, OUT ended int4, OUT rung int4
) LANGUAGE plpgsql AS $$
DECLARE
    held {schema}.lease;
    so_far {schema}.past;
BEGIN
    letter := 'd';
    IF p_kind = 'p' THEN
        UPDATE {schema}.lease SET noted = noted | 2
        WHERE session = p_session AND seq = p_seq AND fence = p_fence AND nonce = p_nonce;
        IF FOUND THEN
            INSERT INTO {schema}.progress (seq, fraction, message) VALUES (p_seq, p_fraction, p_text)
            ON CONFLICT (seq) DO UPDATE SET fraction = excluded.fraction, message = excluded.message;
            RETURN;
        END IF;
    ELSE
        DELETE FROM {schema}.lease
        WHERE session = p_session AND seq = p_seq AND fence = p_fence AND nonce = p_nonce
        RETURNING * INTO held;
    END IF;
    IF held.seq IS NULL THEN
        letter := {schema}.unmatched_1(p_seq, p_id, p_fence, p_nonce);
        RETURN;
    END IF;
    ended := held.lane;
    so_far := ROW(held.seq, held.due, held.at, held.fence, held.failures, held.lost, held.noted,
        int4send(held.fence) || held.nonce);
    IF p_kind IN ('r', 'f') THEN
        PERFORM {schema}.note_1(p_seq, p_now, p_body);
        so_far.failures := so_far.failures + 1;
        so_far.noted := so_far.noted | 1;
    END IF;
    IF p_kind = 'c' THEN
        rung := {schema}.finish_1(p_now, so_far, 1::int2, NULL, p_body);
    ELSIF p_kind = 'x' THEN
        rung := {schema}.finish_1(p_now, so_far, 3::int2, p_text, NULL);
    ELSIF p_kind = 'f' THEN
        rung := {schema}.bury_1(p_now, so_far, p_text);
    ELSE
        so_far.due := coalesce(p_now + p_delay, so_far.due);
        SELECT w.rung INTO rung FROM {schema}.wait_again_1(p_now, held, so_far) w;
    END IF;
END $$;

-- name: unmatched
-- What to say of a settlement whose lease is not held.
-- Inputs: seq, id, fence and nonce of that lease
-- Result: already: this token settled the job last; else stale
-- Atomic: one look each at the places where that token can be
CREATE OR REPLACE FUNCTION {schema}.unmatched_1(p_seq int8, p_id bytea, p_fence int4, p_nonce bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    token bytea := int4send(p_fence) || p_nonce;
BEGIN
    IF EXISTS (SELECT FROM {schema}.past WHERE seq = p_seq AND settled = token)
        OR EXISTS (
            SELECT FROM {schema}.done d, {schema}.horizon h WHERE d.id = p_id AND d.seq = p_seq AND d.settled = token
                AND h.what = 'completed' AND (d.finished, d.seq) > (h.finished, h.seq)
        )
    THEN
        RETURN 'a';
    END IF;
    RETURN 's';
END $$;

-- name: finish
-- End a job that nobody holds any more as completed or cancelled. Its payload goes.
-- Inputs: the time; what was known of it as a row of `past`; 1 completed, 3 cancelled; the reason;
--   the result, NULL for none
-- Result: the lane of a job that gave a unique key back, else NULL
CREATE OR REPLACE FUNCTION {schema}.finish_1(
    p_now int8, p_past {schema}.past, p_state int2, p_reason text, p_result bytea
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    DELETE FROM {schema}.job WHERE seq = p_past.seq
    RETURNING seq, lane, id, digest, created, unique_key, options,
        CASE WHEN p_past.noted > 0 THEN {schema}.kept_1(seq, p_past.noted) END AS kept INTO STRICT body;
    INSERT INTO {schema}.done (seq, due, created, started, finished, lane, failures, lost, state, id, digest,
        settled, reason, options, history_at, history, fraction, message)
    VALUES (body.seq, p_past.due, body.created, p_past.started, p_now, body.lane, p_past.failures,
        p_past.lost, p_state, body.id, body.digest, p_past.settled, p_reason, body.options,
        (body.kept).history_at, (body.kept).history, (body.kept).fraction, (body.kept).message);
    IF p_result IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished, body) VALUES (body.seq, p_now, p_result);
    END IF;
    PERFORM {schema}.forget_1(ARRAY[body.seq], p_past.noted);
    RETURN {schema}.free_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: bury
-- End a job that nobody holds any more as failed: a dead letter, kept whole.
-- Inputs: the time; what was known of it as a row of `past`; the reason
-- Result: the lane of a job that gave a unique key back, else NULL
CREATE OR REPLACE FUNCTION {schema}.bury_1(p_now int8, p_past {schema}.past, p_reason text) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    PERFORM {schema}.remember_1(p_past);
    INSERT INTO {schema}.dead (seq, finished, reason) VALUES (p_past.seq, p_now, p_reason);
    SELECT seq, lane, unique_key INTO STRICT body FROM {schema}.job WHERE seq = p_past.seq;
    RETURN {schema}.free_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: wait_again
-- Let a job wait again that nobody holds any more; or end it, where a cancel was asked for.
-- Inputs: the time; its lease, that is gone; what is known of it as a row of `past`
-- Result: whether it waits, and the lane to ring, NULL for none
CREATE OR REPLACE FUNCTION {schema}.wait_again_1(
    p_now int8, p_lease {schema}.lease, p_past {schema}.past, OUT waits bool, OUT rung int4
) LANGUAGE plpgsql AS $$
BEGIN
    waits := NOT p_lease.cancel;
    IF waits THEN
        PERFORM {schema}.remember_1(p_past);
        PERFORM {schema}.stand_1(p_now, p_past.seq, p_past.due, p_lease.lane,
            CAST(CASE WHEN p_past.failures > 0 THEN 2 ELSE 1 END AS int2));
        rung := CASE WHEN p_past.due <= p_now THEN p_lease.lane END;
    ELSE
        p_past.due := p_lease.due;  -- it never waited for another time
        rung := {schema}.finish_1(p_now, p_past, 3::int2, NULL, NULL);
    END IF;
END $$;

-- name: note
-- Add to the history of a job.
-- Inputs: its seq, the time, the error as JSON
CREATE OR REPLACE FUNCTION {schema}.note_1(p_seq int8, p_now int8, p_body bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.attempt_error (seq, n, at, body)
    SELECT p_seq, coalesce(max(n), 0) + 1, p_now, p_body FROM {schema}.attempt_error WHERE seq = p_seq;
END $$;

-- name: remember
-- Keep what became of a job so far.
-- Inputs: the row
CREATE OR REPLACE FUNCTION {schema}.remember_1(p_past {schema}.past) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.past (seq, due, started, fence, failures, lost, noted, settled)
    VALUES (p_past.seq, p_past.due, p_past.started, p_past.fence, p_past.failures, p_past.lost,
        p_past.noted, p_past.settled)
    ON CONFLICT (seq) DO UPDATE SET due = excluded.due, started = excluded.started,
        fence = excluded.fence, failures = excluded.failures, lost = excluded.lost,
        noted = excluded.noted, settled = excluded.settled;
END $$;

-- name: kept
-- What was noted of a job besides its body.
-- Inputs: its seq; 1: it has a history, 2: it has progress
-- Result: both; NULL where it has none
-- Atomic: of the caller's transaction. A function, so that who moves jobs without notes has no part of
--   it in his plan
CREATE OR REPLACE FUNCTION {schema}.kept_1(p_seq int8, p_noted int2) RETURNS {schema}.kept
LANGUAGE plpgsql STABLE AS $$
DECLARE
    kept {schema}.kept;
BEGIN
    IF p_noted & 1 > 0 THEN
        SELECT array_agg(e.at ORDER BY e.n), array_agg(e.body ORDER BY e.n)
        INTO kept.history_at, kept.history FROM {schema}.attempt_error e WHERE e.seq = p_seq;
    END IF;
    IF p_noted & 2 > 0 THEN
        SELECT p.fraction, p.message INTO kept.fraction, kept.message FROM {schema}.progress p WHERE p.seq = p_seq;
    END IF;
    RETURN kept;
END $$;

-- name: forget
-- Drop what was kept of jobs beside their bodies.
-- Inputs: their seqs; 1: some have a history, 2: some have progress
CREATE OR REPLACE FUNCTION {schema}.forget_1(p_seqs int8[], p_noted int2) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.past WHERE seq = ANY (p_seqs);
    IF p_noted & 1 > 0 THEN
        DELETE FROM {schema}.attempt_error WHERE seq = ANY (p_seqs);
    END IF;
    IF p_noted & 2 > 0 THEN
        DELETE FROM {schema}.progress WHERE seq = ANY (p_seqs);
    END IF;
END $$;

-- name: free_key
-- Give back the unique key of a job that ended, unless it is held for a stated time.
-- Inputs: its seq, lane and key (NULL: it has none)
-- Result: its lane when a key is free now, else NULL
CREATE OR REPLACE FUNCTION {schema}.free_key_1(p_seq int8, p_lane int4, p_key text) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    IF p_key IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM {schema}.unique_key u USING {schema}.lane a
    WHERE a.id = p_lane AND u.name = a.name AND u.key = p_key AND u.seq = p_seq AND u.until IS NULL;
    RETURN CASE WHEN FOUND THEN p_lane END;
END $$;

-- name: free_keys
-- Give back the unique keys of jobs that ended, unless they are held for a stated time.
-- Inputs: their seqs, lanes and keys, side by side
-- Result: the lanes of those whose keys are free now
-- Locks: the keys, in the order of name and key
CREATE OR REPLACE FUNCTION {schema}.free_keys_1(p_seqs int8[], p_lanes int4[], p_keys text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    rung int4[];
BEGIN
    WITH freed AS (
        DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM unnest(p_seqs, p_lanes, p_keys) AS k (seq, lane, key)
            JOIN {schema}.lane a ON a.id = k.lane
            JOIN {schema}.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
            WHERE u.until IS NULL
            ORDER BY u.name, u.key FOR UPDATE OF u
        )) RETURNING seq
    )
    SELECT array_agg(DISTINCT k.lane) INTO rung
    FROM unnest(p_seqs, p_lanes) AS k (seq, lane) WHERE k.seq IN (SELECT seq FROM freed);
    RETURN rung;
END $$;

-- name: complete_in
-- Complete a job as the last thing in the transaction of its handler.
-- Inputs: the time or NULL; the identity of the backend that is meant; the channel of its rings; the
--   session's id; seq, id, fence and nonce of the lease; the result or NULL
-- Result: done, already, stale as letters; l: the session is not alive; !: this is another backend
-- Locks: the tables `gate` and `paused` in ROW SHARE; the limit of the job's name; its unique key; the
--   job's own rows; until the caller's transaction ends
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so a job that is
--   another's by now is not touched
CREATE OR REPLACE FUNCTION {schema}.complete_in_1(
    p_now int8, p_identity text, p_channel text, p_session text, p_seq int8, p_id bytea, p_fence int4,
    p_nonce bytea, p_result bytea
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    me int4;
    settled record;
    rung int4[];
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.meta WHERE identity = p_identity) THEN
        RETURN '!';
    END IF;
    now := {schema}.clock_1(p_now);
    SELECT n INTO me FROM {schema}.session WHERE id = p_session AND dead_at IS NULL AND left_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'l';
    END IF;
    LOCK TABLE {schema}.gate, {schema}.paused IN ROW SHARE MODE;
    PERFORM FROM {schema}.gate g WHERE g.name = (
        SELECT a.name FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = me AND l.seq = p_seq
    ) FOR NO KEY UPDATE;
    SELECT * INTO settled FROM {schema}.settle_1(
        now, me, 'c', p_seq, p_id, p_fence, p_nonce, NULL, NULL, p_result, NULL);
    IF settled.letter = 'd' THEN
        rung := {schema}.open_gate_1(ARRAY[settled.ended]) || settled.rung;
        PERFORM {schema}.announce_1(p_channel, ARRAY(SELECT queue FROM {schema}.lane WHERE id = ANY (rung)));
    END IF;
    RETURN settled.letter;
END $$;
