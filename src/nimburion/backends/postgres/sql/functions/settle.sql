-- Settle: what became of attempts.
--
-- Atomic: part of the caller's transaction. A lease is deleted by session, seq, fence and nonce, so a token settles once.
-- Locks: the job's own rows and its unique key. `complete_all` completes many jobs at once and fails as a whole (NB001) where
-- one lease is not held under its token; the caller then repeats the exchange with `settle_each`.

-- name: complete_all
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
CREATE OR REPLACE FUNCTION {schema}.complete_all_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[],
    OUT ended int4[], OUT keyed int8[], OUT keyed_lanes int4[], OUT keys text[]
) LANGUAGE plpgsql
SET enable_nestloop TO off SET enable_hashjoin TO on AS $$
DECLARE
    seqs int8[];
    fences int4[];
    nonces bytea[];
    notes int2;
    any_attempted bool;
BEGIN
    WITH l AS (
        DELETE FROM {schema}.lease WHERE session = p_session AND seq = ANY (p_seqs)
        RETURNING seq, due, leased_at, fence, failures, lost, attempt_status, extra_flags, nonce, lane
    ), j AS (
        DELETE FROM {schema}.job WHERE seq = ANY (p_seqs)
        RETURNING seq, created, lane, id, digest, options, unique_key
    ), d AS (
        INSERT INTO {schema}.finished_job (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled_token, options, history_at, history, fraction, message)
        SELECT x.seq, x.due, x.created, x.leased_at, p_now, x.lane, x.failures, x.lost, 1, x.id, x.digest,
            int4send(x.fence) || x.nonce, x.options, (x.kept).history_at, (x.kept).history,
            (x.kept).fraction, (x.kept).message
        FROM (
            SELECT l.*, j.created, j.id, j.digest, j.options,
                CASE WHEN l.extra_flags > 0 THEN {schema}.get_job_extras_1(l.seq, l.extra_flags) END AS kept
            FROM l JOIN j ON j.seq = l.seq
        ) x
    ), k AS (
        SELECT array_agg(j.seq), array_agg(j.lane), array_agg(j.unique_key)
        FROM j WHERE j.unique_key IS NOT NULL
    ), h AS (
        SELECT array_agg(l.seq), array_agg(l.fence), array_agg(l.nonce), array_agg(l.lane), bit_or(l.extra_flags),
            bool_or(l.attempt_status > 0)
        FROM l
    )
    SELECT * INTO seqs, fences, nonces, ended, notes, any_attempted, keyed, keyed_lanes, keys FROM h, k;
    IF (seqs = p_seqs AND fences = p_fences AND nonces = p_nonces) IS NOT TRUE THEN
        RAISE 'a lease that was named is not held' USING ERRCODE = 'NB001';
    END IF;
    IF any_attempted OR notes > 0 THEN
        PERFORM {schema}.drop_attempt_state_1(seqs, notes);
    END IF;
    IF p_bodies IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished, body)
        SELECT g.seq, p_now, g.body FROM unnest(p_seqs, p_bodies) AS g (seq, body)
        WHERE g.body IS NOT NULL;
    END IF;
END $$;

-- name: settle_each
-- Apply settlements one after the other.
-- Inputs: as `settle_one_1`, each an array but for the codes, which are one text (NULL: all completed)
-- Result: a code for each: done, already, stale; the lanes whose leases ended; the lanes to notify
-- Locks: the jobs' own rows; their unique keys, one after the other
CREATE OR REPLACE FUNCTION {schema}.settle_each_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[],
    p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[], p_fractions float8[],
    OUT codes text, OUT ended int4[], OUT to_notify int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    g record;
    one record;
    code_list text[] := '{}';
BEGIN
    FOR g IN
        SELECT * FROM unnest(string_to_array(coalesce(p_kinds, repeat('c', cardinality(p_seqs))), NULL), p_seqs, p_ids, p_fences, p_nonces, p_delays,
            p_texts, p_bodies, p_fractions)
            AS u (kind, seq, id, fence, nonce, delay, said, body, fraction)
    LOOP
        SELECT * INTO one FROM {schema}.settle_one_1(p_now, p_session, g.kind, g.seq, g.id, g.fence, g.nonce,
            g.delay, g.said, g.body, g.fraction);
        code_list := code_list || one.code;
        ended := CASE WHEN one.ended IS NULL THEN ended ELSE ended || one.ended END;
        to_notify := CASE WHEN one.to_notify IS NULL THEN to_notify ELSE to_notify || one.to_notify END;
    END LOOP;
    codes := array_to_string(code_list, '');
END $$;

-- name: settle_one
-- Apply one settlement, if its whole token holds.
-- Inputs: the time; the session; the code of what happened (completed, retried, failed, given back:
--   l, snoozed: s, x: cancelled, progressed); seq, id, fence and nonce of the lease; then, each NULL
--   where there is none: delay in microseconds, reason or message, result or error, fraction
-- Result: done, already or stale; the lane whose lease ended; the lane to notify, NULL for none
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so it settles once
CREATE OR REPLACE FUNCTION {schema}.settle_one_1(
    p_now int8, p_session int4, p_kind text, p_seq int8, p_id bytea, p_fence int4, p_nonce bytea,
    p_delay int8, p_text text, p_body bytea, p_fraction float8,
    OUT code text, OUT ended int4, OUT to_notify int4
) LANGUAGE plpgsql AS $$
DECLARE
    held {schema}.lease;
    attempts {schema}.attempt_state;
BEGIN
    code := 'd';
    IF p_kind = 'p' THEN
        UPDATE {schema}.lease SET extra_flags = extra_flags | 2
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
        code := {schema}.classify_unmatched_1(p_seq, p_id, p_fence, p_nonce);
        RETURN;
    END IF;
    ended := held.lane;
    attempts := ROW(held.seq, held.due, held.leased_at, held.fence, held.failures, held.lost, held.extra_flags,
        int4send(held.fence) || held.nonce);
    IF p_kind IN ('r', 'f') THEN
        PERFORM {schema}.add_error_1(p_seq, p_now, p_body);
        attempts.failures := attempts.failures + 1;
        attempts.extra_flags := attempts.extra_flags | 1;
    END IF;
    IF p_kind = 'c' THEN
        to_notify := {schema}.finish_job_1(p_now, attempts, 1::int2, NULL, p_body);
    ELSIF p_kind = 'x' THEN
        to_notify := {schema}.finish_job_1(p_now, attempts, 3::int2, p_text, NULL);
    ELSIF p_kind = 'f' THEN
        to_notify := {schema}.mark_dead_1(p_now, attempts, p_text);
    ELSE
        attempts.due := coalesce(p_now + p_delay, attempts.due);
        SELECT w.to_notify INTO to_notify FROM {schema}.requeue_1(p_now, held, attempts) w;
    END IF;
END $$;

-- name: classify_unmatched
-- What to say of a settlement whose lease is not held.
-- Inputs: seq, id, fence and nonce of that lease
-- Result: already: this token settled the job last; else stale
-- Atomic: one look each at the places where that token can be
CREATE OR REPLACE FUNCTION {schema}.classify_unmatched_1(p_seq int8, p_id bytea, p_fence int4, p_nonce bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    token bytea := int4send(p_fence) || p_nonce;
BEGIN
    IF EXISTS (SELECT FROM {schema}.attempt_state WHERE seq = p_seq AND settled_token = token)
        OR EXISTS (
            SELECT FROM {schema}.finished_job d, {schema}.horizon h WHERE d.id = p_id AND d.seq = p_seq AND d.settled_token = token
                AND h.what = 'completed' AND (d.finished, d.seq) > (h.finished, h.seq)
        )
    THEN
        RETURN 'a';
    END IF;
    RETURN 's';
END $$;

-- name: finish_job
-- End a job that nobody holds any more as completed or cancelled. Its payload goes.
-- Inputs: the time; what was known of it as a row of `attempt_state`; 1 completed, 3 cancelled; the reason;
--   the result, NULL for none
-- Result: the lane of a job that gave a unique key back, else NULL
CREATE OR REPLACE FUNCTION {schema}.finish_job_1(
    p_now int8, p_attempts {schema}.attempt_state, p_state int2, p_reason text, p_result bytea
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    DELETE FROM {schema}.job WHERE seq = p_attempts.seq
    RETURNING seq, lane, id, digest, created, unique_key, options,
        CASE WHEN p_attempts.extra_flags > 0 THEN {schema}.get_job_extras_1(seq, p_attempts.extra_flags) END AS kept INTO STRICT body;
    INSERT INTO {schema}.finished_job (seq, due, created, started, finished, lane, failures, lost, state, id, digest,
        settled_token, reason, options, history_at, history, fraction, message)
    VALUES (body.seq, p_attempts.due, body.created, p_attempts.started, p_now, body.lane, p_attempts.failures,
        p_attempts.lost, p_state, body.id, body.digest, p_attempts.settled_token, p_reason, body.options,
        (body.kept).history_at, (body.kept).history, (body.kept).fraction, (body.kept).message);
    IF p_result IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished, body) VALUES (body.seq, p_now, p_result);
    END IF;
    PERFORM {schema}.drop_attempt_state_1(ARRAY[body.seq], p_attempts.extra_flags);
    RETURN {schema}.free_unique_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: mark_dead
-- End a job that nobody holds any more as failed: a dead letter, kept whole.
-- Inputs: the time; what was known of it as a row of `attempt_state`; the reason
-- Result: the lane of a job that gave a unique key back, else NULL
CREATE OR REPLACE FUNCTION {schema}.mark_dead_1(p_now int8, p_attempts {schema}.attempt_state, p_reason text) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    PERFORM {schema}.save_attempt_state_1(p_attempts);
    INSERT INTO {schema}.dead_letter (seq, finished, reason) VALUES (p_attempts.seq, p_now, p_reason);
    SELECT seq, lane, unique_key INTO STRICT body FROM {schema}.job WHERE seq = p_attempts.seq;
    RETURN {schema}.free_unique_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: requeue
-- Let a job wait again that nobody holds any more; or end it, where a cancel was asked for.
-- Inputs: the time; its lease, that is gone; what is known of it as a row of `attempt_state`
-- Result: whether it waits, and the lane to notify, NULL for none
CREATE OR REPLACE FUNCTION {schema}.requeue_1(
    p_now int8, p_lease {schema}.lease, p_attempts {schema}.attempt_state, OUT waits bool, OUT to_notify int4
) LANGUAGE plpgsql AS $$
BEGIN
    waits := NOT p_lease.cancel_requested;
    IF waits THEN
        PERFORM {schema}.save_attempt_state_1(p_attempts);
        PERFORM {schema}.make_waiting_1(p_now, p_attempts.seq, p_attempts.due, p_lease.lane,
            CAST(CASE WHEN p_attempts.failures > 0 THEN 2 ELSE 1 END AS int2));
        to_notify := CASE WHEN p_attempts.due <= p_now THEN p_lease.lane END;
    ELSE
        p_attempts.due := p_lease.due;  -- it never waited for another time
        to_notify := {schema}.finish_job_1(p_now, p_attempts, 3::int2, NULL, NULL);
    END IF;
END $$;

-- name: add_error
-- Add to the history of a job.
-- Inputs: its seq, the time, the error as JSON
CREATE OR REPLACE FUNCTION {schema}.add_error_1(p_seq int8, p_now int8, p_body bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.attempt_error (seq, position, occurred_at, body)
    SELECT p_seq, coalesce(max(position), 0) + 1, p_now, p_body FROM {schema}.attempt_error WHERE seq = p_seq;
END $$;

-- name: save_attempt_state
-- Keep what became of a job so far.
-- Inputs: the row
CREATE OR REPLACE FUNCTION {schema}.save_attempt_state_1(p_attempts {schema}.attempt_state) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.attempt_state (seq, due, started, fence, failures, lost, extra_flags, settled_token)
    VALUES (p_attempts.seq, p_attempts.due, p_attempts.started, p_attempts.fence, p_attempts.failures, p_attempts.lost,
        p_attempts.extra_flags, p_attempts.settled_token)
    ON CONFLICT (seq) DO UPDATE SET due = excluded.due, started = excluded.started,
        fence = excluded.fence, failures = excluded.failures, lost = excluded.lost,
        extra_flags = excluded.extra_flags, settled_token = excluded.settled_token;
END $$;

-- name: get_job_extras
-- What was noted of a job besides its body.
-- Inputs: its seq; 1: it has a history, 2: it has progress
-- Result: both; NULL where it has none
-- Atomic: of the caller's transaction. A function, so that who moves jobs without notes has no part of
--   it in his plan
CREATE OR REPLACE FUNCTION {schema}.get_job_extras_1(p_seq int8, p_extra_flags int2) RETURNS {schema}.job_extras
LANGUAGE plpgsql STABLE AS $$
DECLARE
    kept {schema}.job_extras;
BEGIN
    IF p_extra_flags & 1 > 0 THEN
        SELECT array_agg(e.occurred_at ORDER BY e.position), array_agg(e.body ORDER BY e.position)
        INTO kept.history_at, kept.history FROM {schema}.attempt_error e WHERE e.seq = p_seq;
    END IF;
    IF p_extra_flags & 2 > 0 THEN
        SELECT p.fraction, p.message INTO kept.fraction, kept.message FROM {schema}.progress p WHERE p.seq = p_seq;
    END IF;
    RETURN kept;
END $$;

-- name: drop_attempt_state
-- Drop what was kept of jobs beside their bodies.
-- Inputs: their seqs; 1: some have a history, 2: some have progress
CREATE OR REPLACE FUNCTION {schema}.drop_attempt_state_1(p_seqs int8[], p_extra_flags int2) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.attempt_state WHERE seq = ANY (p_seqs);
    IF p_extra_flags & 1 > 0 THEN
        DELETE FROM {schema}.attempt_error WHERE seq = ANY (p_seqs);
    END IF;
    IF p_extra_flags & 2 > 0 THEN
        DELETE FROM {schema}.progress WHERE seq = ANY (p_seqs);
    END IF;
END $$;

-- name: free_unique_key
-- Give back the unique key of a job that ended, unless it is held for a stated time.
-- Inputs: its seq, lane and key (NULL: it has none)
-- Result: its lane when a key is free now, else NULL
CREATE OR REPLACE FUNCTION {schema}.free_unique_key_1(p_seq int8, p_lane int4, p_key text) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    IF p_key IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM {schema}.unique_key u USING {schema}.lane a
    WHERE a.id = p_lane AND u.name = a.name AND u.key = p_key AND u.seq = p_seq AND u.valid_until IS NULL;
    RETURN CASE WHEN FOUND THEN p_lane END;
END $$;

-- name: free_unique_keys
-- Give back the unique keys of jobs that ended, unless they are held for a stated time.
-- Inputs: their seqs, lanes and keys, side by side
-- Result: the lanes of those whose keys are free now
-- Locks: the keys, in the order of name and key
CREATE OR REPLACE FUNCTION {schema}.free_unique_keys_1(p_seqs int8[], p_lanes int4[], p_keys text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    to_notify int4[];
BEGIN
    WITH freed AS (
        DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM unnest(p_seqs, p_lanes, p_keys) AS k (seq, lane, key)
            JOIN {schema}.lane a ON a.id = k.lane
            JOIN {schema}.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
            WHERE u.valid_until IS NULL
            ORDER BY u.name, u.key FOR UPDATE OF u
        )) RETURNING seq
    )
    SELECT array_agg(DISTINCT k.lane) INTO to_notify
    FROM unnest(p_seqs, p_lanes) AS k (seq, lane) WHERE k.seq IN (SELECT seq FROM freed);
    RETURN to_notify;
END $$;

-- name: complete_in_caller
-- Complete a job as the last thing in the transaction of its handler.
-- Inputs: the time or NULL; the identity of the backend that is meant; the channel of its rings; the
--   session's id; seq, id, fence and nonce of the lease; the result or NULL
-- Result: done, already, stale as codes; l: the session is not alive; !: this is another backend
-- Locks: the tables `concurrency_limit` and `paused_queue` in ROW SHARE; the limit of the job's name; its unique key; the
--   job's own rows; until the caller's transaction ends
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so a job that is
--   another's by now is not touched
CREATE OR REPLACE FUNCTION {schema}.complete_in_caller_1(
    p_now int8, p_identity text, p_channel text, p_session text, p_seq int8, p_id bytea, p_fence int4,
    p_nonce bytea, p_result bytea
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    me int4;
    outcome record;
    to_notify int4[];
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.meta WHERE identity = p_identity) THEN
        RETURN '!';
    END IF;
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO me FROM {schema}.session WHERE id = p_session AND ended_at IS NULL AND left_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'l';
    END IF;
    LOCK TABLE {schema}.concurrency_limit, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM FROM {schema}.concurrency_limit g WHERE g.name = (
        SELECT a.name FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = me AND l.seq = p_seq
    ) FOR NO KEY UPDATE;
    SELECT * INTO outcome FROM {schema}.settle_one_1(
        now, me, 'c', p_seq, p_id, p_fence, p_nonce, NULL, NULL, p_result, NULL);
    IF outcome.code = 'd' THEN
        to_notify := {schema}.release_limits_1(ARRAY[outcome.ended]) || outcome.to_notify;
        PERFORM {schema}.notify_queues_1(p_channel, ARRAY(SELECT queue FROM {schema}.lane WHERE id = ANY (to_notify)));
    END IF;
    RETURN outcome.code;
END $$;
