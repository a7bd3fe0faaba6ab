-- Settle: store the outcomes of attempts. backends/planning/settle.py decides the same in Python.
--
-- Atomic: part of the caller's transaction. A lease is deleted by session, seq, fence and nonce, so a token settles once.
-- Locks: the rows of the job and its unique key.
-- Texts: the reason of a failure or cancellation, the message of a progress report. For a completion, the text 'keep' means that
-- the payload is kept, and NULL that it is not.
-- `complete_all` completes many jobs at once. It fails as a whole (NB001) if the session does not hold one of the leases
-- under its token. The caller then repeats the exchange with `settle_each`.

-- name: settle_all
-- Apply the settlements of an exchange.
-- Inputs: the time; the number of the session; the settlements as for `exchange_1`; whether tenants may have been charged
-- Result: as of `settle_each_1`; then
--   changes     the changes of members of flows that are not in `flow_change`, for the caller; NULL: none
CREATE OR REPLACE FUNCTION {schema}.settle_all_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[],
    p_bodies bytea[], p_delays int8[], p_texts text[], p_fractions float8[], p_has_charges bool,
    OUT codes text, OUT to_notify int4[], OUT key_numbers int8[], OUT changes {schema}.flow_change[]
) LANGUAGE plpgsql AS $$
DECLARE
    completed record;
BEGIN
    IF cardinality(p_fences) = 1 THEN
        p_fences := array_fill(p_fences[1], ARRAY[cardinality(p_seqs)]);
    END IF;
    IF p_has_charges THEN
        PERFORM {schema}.settle_charges_1(p_now, p_session, p_seqs, p_kinds, p_fences, p_nonces);
    END IF;
    IF p_kinds IS NOT NULL THEN
        SELECT s.codes, s.to_notify, s.key_numbers, s.changes INTO codes, to_notify, key_numbers, changes
        FROM {schema}.settle_each_1(p_now, p_session, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
            p_texts, p_fractions) s;
        RETURN;
    END IF;
    codes := repeat('d', cardinality(p_seqs));
    completed := {schema}.complete_all_1(p_now, p_session, p_seqs, p_fences, p_nonces, p_bodies, p_texts);
    key_numbers := completed.key_numbers;
    IF completed.keyed IS NOT NULL THEN
        to_notify := {schema}.free_unique_keys_1(completed.keyed, completed.keyed_lanes, completed.keys);
    END IF;
    IF completed.member_flows IS NOT NULL THEN
        changes := {schema}.make_changes_1(completed.member_ids, completed.member_flows, 'succeeded', 'completed');
    END IF;
END $$;

-- name: complete_all
-- Complete many jobs at once, if the session holds all of them under the given tokens.
-- Inputs: the time; the session; seqs (ascending), fences and nonces of the leases; the results (NULL: no job has one);
--   for each job `keep` if its payload is kept, else NULL (NULL: none is kept). A single text applies to all jobs.
-- Result:
--   keyed, keyed_lanes, keys  seqs, lanes and unique keys of the jobs that have one, for the caller to release
--   key_numbers               the keys of limits that the leases counted for, one element for each lease and key; NULL: none
--   member_ids, member_flows  ids and flows of the jobs that are in flows; NULL: none
-- Locks: the rows of the jobs
-- Atomic: leases are deleted by session and seq. Their tokens are then compared with the given tokens. If one differs,
--   the call fails with NB001, and the caller settles one by one.
-- A hash join of leases and jobs is forced, because the planner may expect one row: on tables that were empty at their
--   last vacuum, a nested loop takes quadratic time. The functions that are called here use the same settings.
CREATE OR REPLACE FUNCTION {schema}.complete_all_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_texts text[],
    OUT keyed int8[], OUT keyed_lanes int4[], OUT keys text[], OUT key_numbers int8[],
    OUT member_ids bytea[], OUT member_flows int8[]
) LANGUAGE plpgsql
SET enable_nestloop TO off SET enable_hashjoin TO on AS $$
DECLARE
    seqs int8[];
    fences int4[];
    nonces bytea[];
    all_flags int2;
    any_attempted bool;
    keeps_all bool := p_texts = '{keep}';
    kept int8[];
BEGIN
    IF cardinality(p_texts) > 1 THEN
        kept := ARRAY(SELECT k.seq FROM unnest(p_seqs, p_texts) AS k (seq, text) WHERE k.text = 'keep');
    END IF;
    WITH ended_leases AS (
        DELETE FROM {schema}.lease l WHERE l.session = p_session AND l.seq = ANY (p_seqs)
        RETURNING l.seq, l.due, l.leased_at, l.fence, l.failures, l.lost, l.nonce, l.lane, l.attempt_status, l.extra_flags,
            l.key_numbers
    ), ended_jobs AS (
        DELETE FROM {schema}.job j WHERE j.seq = ANY (p_seqs)
        RETURNING j.unique_key, j.flow, j.seq, j.lane, j.created_at, j.id, j.digest, j.options,
            CASE WHEN keeps_all OR j.seq = ANY (kept) THEN j.payload END AS payload
    ), finished AS (
        INSERT INTO {schema}.finished_job (seq, due, created_at, started_at, finished_at, lane, failures, lost, ended_by, state,
            id, digest, settled_token, options, history_at, history, fraction, message, payload)
        SELECT e.seq, nullif(e.due, e.created_at), e.created_at, e.leased_at, p_now, e.lane, nullif(e.failures, 0),
            nullif(e.lost, 0), p_session, 1, e.id, e.digest,
            int4send(e.fence) || e.nonce, e.options, (e.extras).history_at, (e.extras).history, (e.extras).fraction,
            (e.extras).message, e.payload
        FROM (
            SELECT l.seq, l.due, j.created_at, l.leased_at, l.lane, l.failures, l.lost, j.id, j.digest, l.fence, l.nonce,
                j.options, j.payload,
                CASE WHEN l.extra_flags > 0 THEN {schema}.get_job_extras_1(l.seq, l.extra_flags) END AS extras
            FROM ended_jobs j JOIN ended_leases l ON l.seq = j.seq OFFSET 0
        ) e
    ), keyed_jobs AS (
        SELECT array_agg(j.seq) FILTER (WHERE j.unique_key IS NOT NULL) AS seqs,
            array_agg(j.lane) FILTER (WHERE j.unique_key IS NOT NULL) AS lanes,
            array_agg(j.unique_key) FILTER (WHERE j.unique_key IS NOT NULL) AS keys,
            array_agg(j.id) FILTER (WHERE j.flow IS NOT NULL) AS member_ids,
            array_agg(j.flow) FILTER (WHERE j.flow IS NOT NULL) AS member_flows
        FROM ended_jobs j WHERE j.unique_key IS NOT NULL OR j.flow IS NOT NULL
    ), leases AS (
        SELECT array_agg(l.seq) AS seqs, array_agg(l.fence) AS fences, array_agg(l.nonce) AS nonces,
            bit_or(l.extra_flags) AS flags, bool_or(l.attempt_status > 0) AS any_attempted,
            CAST(string_to_array(string_agg(array_to_string(l.key_numbers, ','), ',')
                FILTER (WHERE l.key_numbers IS NOT NULL), ',') AS int8[]) AS key_numbers
        FROM ended_leases l
    )
    SELECT l.seqs, l.fences, l.nonces, l.flags, l.any_attempted, l.key_numbers, k.seqs, k.lanes, k.keys,
        k.member_ids, k.member_flows
    INTO seqs, fences, nonces, all_flags, any_attempted, key_numbers, keyed, keyed_lanes, keys, member_ids, member_flows
    FROM leases l, keyed_jobs k;
    IF (seqs = p_seqs AND fences = p_fences AND nonces = p_nonces) IS NOT TRUE THEN
        RAISE 'a lease that was named is not held' USING ERRCODE = 'NB001';
    END IF;
    IF any_attempted OR all_flags > 0 THEN
        PERFORM {schema}.drop_attempt_state_1(seqs, all_flags);
    END IF;
    IF p_bodies IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished_at, body)
        SELECT r.seq, p_now, r.body FROM unnest(p_seqs, p_bodies) AS r (seq, body)
        WHERE r.body IS NOT NULL;
    END IF;
END $$;

-- name: settle_each
-- Apply settlements of any kind: as if one after the other, except that steps of durable runs come first.
-- Inputs: as for `settle_one_1`, as arrays. The kinds are one text with one letter for each.
-- Result:
--   codes       one letter for each settlement: d done, a already settled, s stale
--   to_notify   the lanes to notify
--   key_numbers the keys of limits that the leases counted for; NULL: none
--   changes     as of `settle_all_1`
-- Locks: durable runs, as `prepare_runs_1`; the rows of the jobs; their unique keys
-- Completions, steps of durable runs and their suspensions are applied together: `settle_one_1` takes several statements for each job.
CREATE OR REPLACE FUNCTION {schema}.settle_each_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[],
    p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[], p_fractions float8[],
    OUT codes text, OUT to_notify int4[], OUT key_numbers int8[], OUT changes {schema}.flow_change[]
) LANGUAGE plpgsql AS $$
DECLARE
    matched record;
    others record;
    together record;
    unmatched record;
    place int4;
BEGIN
    -- Most exchanges of durable runs have only steps.
    IF translate(p_kinds, 't', '') = '' AND {schema}.add_steps_1(p_now, p_session, p_seqs, p_fences, p_nonces, p_delays, p_bodies, p_texts) THEN
        codes := repeat('d', cardinality(p_seqs));
        RETURN;
    END IF;

    -- Step 1: find the leases, and store the steps.
    matched := {schema}.match_leases_1(p_session, p_kinds, p_seqs, p_fences, p_nonces, p_texts);
    PERFORM {schema}.prepare_runs_1(p_now, p_kinds, matched.new_runs, matched.locked_runs);
    IF p_kinds ~ '[tg]' THEN
        PERFORM {schema}.record_steps_1(p_now, p_session, matched.roles, p_seqs, p_bodies, p_delays, p_texts, matched.has_counts);
    END IF;
    codes := translate(matched.roles, 'tgcs', 'dddd');

    -- Step 2: apply settlements one after the other.
    IF strpos(matched.roles, '-') > 0 THEN
        others := {schema}.settle_in_order_1(p_now, p_session, codes, '-', p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_delays,
            p_texts, p_bodies, p_fractions);
        codes := others.codes;
        to_notify := others.to_notify;
        key_numbers := others.key_numbers;
    END IF;

    -- Step 3: complete jobs, and suspend durable runs.
    IF strpos(matched.roles, 'c') > 0 THEN
        together := {schema}.complete_matched_1(p_now, p_session, matched.roles, p_seqs, p_fences, p_nonces, p_bodies, p_texts);
        to_notify := to_notify || together.to_notify;
        key_numbers := key_numbers || together.key_numbers;
        changes := together.changes;
    END IF;
    IF strpos(matched.roles, 's') > 0 THEN
        together := {schema}.suspend_runs_1(p_now, p_session, matched.roles, p_seqs, p_fences, p_nonces, p_texts, p_delays);
        to_notify := to_notify || together.to_notify;
        key_numbers := key_numbers || together.key_numbers;
        IF together.left_places IS NOT NULL THEN
            FOREACH place IN ARRAY together.left_places LOOP
                codes := overlay(codes PLACING 'x' FROM place FOR 1);
            END LOOP;
        END IF;
    END IF;

    -- Step 4: decide those that come after the end of a lease.
    IF strpos(codes, 'x') > 0 THEN
        unmatched := {schema}.settle_in_order_1(p_now, p_session, codes, 'x', p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_delays,
            p_texts, p_bodies, p_fractions);
        codes := unmatched.codes;
        to_notify := to_notify || unmatched.to_notify;
        key_numbers := key_numbers || unmatched.key_numbers;
    END IF;
END $$;

-- name: settle_in_order
-- Apply settlements one after the other.
-- Inputs: the time; the session; one letter for each settlement; the letter of those that are applied; the settlements, as for
--   `settle_one_1`, as arrays, and their kinds as one text
-- Result: the letters, with the results in place of these; then as of `settle_each_1`
CREATE OR REPLACE FUNCTION {schema}.settle_in_order_1(
    p_now int8, p_session int4, p_codes text, p_letter text, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[],
    p_nonces bytea[], p_delays int8[], p_texts text[], p_bodies bytea[], p_fractions float8[],
    OUT codes text, OUT to_notify int4[], OUT key_numbers int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    settlement record;
    result record;
BEGIN
    codes := p_codes;
    FOR settlement IN
        SELECT u.*, CAST(u.position AS int4) AS place FROM unnest(string_to_array(p_codes, NULL), string_to_array(p_kinds, NULL), p_seqs,
            p_ids, p_fences, p_nonces, p_delays, p_texts, p_bodies, p_fractions) WITH ORDINALITY
            AS u (letter, kind, seq, id, fence, nonce, delay, message, body, fraction, position)
        WHERE u.letter = p_letter ORDER BY u.position
    LOOP
        result := {schema}.settle_one_1(p_now, p_session, settlement.kind, settlement.seq, settlement.id, settlement.fence,
            settlement.nonce, settlement.delay, settlement.message, settlement.body, settlement.fraction);
        codes := overlay(codes PLACING result.code FROM settlement.place FOR 1);
        to_notify := CASE WHEN result.to_notify IS NULL THEN to_notify ELSE to_notify || result.to_notify END;
        key_numbers := key_numbers || result.key_numbers;
    END LOOP;
END $$;

-- name: match_leases
-- Find the leases of settlements, and how each settlement is applied.
-- Inputs: the session; kinds, seqs, fences, nonces and texts of the settlements, as for `settle_each_1`
-- Result:
--   roles       one letter for each settlement: t a step; g a step that removes the others; c a completion, s a suspension; - what
--               is applied alone, or has no lease; x an earlier settlement ends the lease of its job
--   has_counts  whether the lease of a step has failures or losses
--   new_runs    the jobs that get a row of `run`: they have a step, or wait for a signal; NULL: none
--   locked_runs the jobs that wait for a signal, or to which a cancel was requested; NULL: none
CREATE OR REPLACE FUNCTION {schema}.match_leases_1(
    p_session int4, p_kinds text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_texts text[],
    OUT roles text, OUT has_counts bool, OUT new_runs int8[], OUT locked_runs int8[]
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off AS $$
BEGIN
    SELECT string_agg(m.role, '' ORDER BY m.place), bool_or(m.has_counts AND m.role IN ('t', 'g')),
        array_agg(m.seq) FILTER (WHERE (m.role IN ('t', 'g') OR m.waits) AND m.is_new),
        array_agg(m.seq) FILTER (WHERE m.waits OR m.cancel_requested)
    INTO roles, has_counts, new_runs, locked_runs
    FROM (
        SELECT n.seq, n.place, n.has_counts, n.is_held AND n.waits AS waits, n.cancel_requested,
            CASE WHEN n.kind IN ('t', 'g') OR n.waits
                THEN NOT EXISTS (SELECT FROM {schema}.run r WHERE r.seq = n.seq) END AS is_new,
            CASE WHEN n.place > n.ended THEN 'x' WHEN n.is_held AND n.kind IN ('t', 'g', 'c', 's') THEN n.kind ELSE '-' END AS role
        FROM (
            SELECT u.kind, u.seq, u.place, u.kind = 's' AND strpos(u.sources, '"signal"') > 0 AS waits, l.seq IS NOT NULL AS is_held,
                l.failures > 0 OR l.lost > 0 AS has_counts, l.cancel_requested,
                min(u.place) FILTER (WHERE l.seq IS NOT NULL AND u.kind NOT IN ('p', 'e', 't', 'g')) OVER (PARTITION BY u.seq) AS ended
            FROM unnest(string_to_array(p_kinds, NULL), p_seqs, p_fences, p_nonces, p_texts) WITH ORDINALITY
                AS u (kind, seq, fence, nonce, sources, place)
            LEFT JOIN {schema}.lease l ON l.session = p_session AND l.seq = u.seq AND l.fence = u.fence AND l.nonce = u.nonce
        ) n
    ) m;
END $$;

-- name: complete_matched
-- Complete those jobs among settlements whose role is `c`.
-- Inputs: the time; the session; roles, seqs, fences, nonces, bodies and texts of the settlements
-- Result: as of `settle_all_1`
CREATE OR REPLACE FUNCTION {schema}.complete_matched_1(
    p_now int8, p_session int4, p_roles text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_texts text[],
    OUT to_notify int4[], OUT key_numbers int8[], OUT changes {schema}.flow_change[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(u.seq), array_agg(u.fence), array_agg(u.nonce), CASE WHEN count(u.body) > 0 THEN array_agg(u.body) END,
        CASE WHEN count(u.keeps) > 0 THEN array_agg(u.keeps) END
    INTO p_seqs, p_fences, p_nonces, p_bodies, p_texts
    FROM (
        SELECT u.seq, u.fence, u.nonce, u.body, u.keeps
        FROM unnest(string_to_array(p_roles, NULL), p_seqs, p_fences, p_nonces, p_bodies, p_texts)
            AS u (role, seq, fence, nonce, body, keeps)
        WHERE u.role = 'c' ORDER BY u.seq
    ) u;
    SELECT a.to_notify, a.key_numbers, a.changes INTO to_notify, key_numbers, changes
    FROM {schema}.settle_all_1(p_now, p_session, NULL, p_seqs, NULL, p_fences, p_nonces, p_bodies, NULL, p_texts, NULL, false) a;
END $$;

-- name: settle_one
-- Apply one settlement, if its whole token matches.
-- Inputs:
--   p_now                           the time
--   p_session                       the number of the session
--   p_kind                          c completed, r retried, f failed, l released, u released unstarted, q rate limited,
--                                   x cancelled, p progressed, e spent, s suspended, if a cancel was requested, t a step of a
--                                   durable run, g a step that removes the others
--   p_seq, p_id, p_fence, p_nonce   the lease
--   p_delay                         microseconds until the job is due again; NULL: its due time is unchanged. For e the
--                                   units that were spent, for t and g the number of the step
--   p_text                          the reason, or the message of the progress; of a completion `keep` if the payload is
--                                   kept; for s the sources, as for `suspend_runs_1`; for t and g the number of the signal that
--                                   the step takes (NULL: none)
--   p_body                          the result, the error (JSON), or the body of the step
--   p_fraction                      the fraction of the progress
-- Result:
--   code                            d done, a already settled, s stale
--   to_notify                       the lane to notify; NULL: none
--   key_numbers                     the keys of limits that the lease counted for; NULL: none
-- Atomic: part of the caller's transaction. The lease is deleted by its whole token, so it settles once.
CREATE OR REPLACE FUNCTION {schema}.settle_one_1(
    p_now int8, p_session int4, p_kind text, p_seq int8, p_id bytea, p_fence int4, p_nonce bytea,
    p_delay int8, p_text text, p_body bytea, p_fraction float8,
    OUT code text, OUT to_notify int4, OUT key_numbers int8[]
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
    ELSIF p_kind = 'e' THEN
        SELECT l.lane INTO held.lane FROM {schema}.lease l
        WHERE l.session = p_session AND l.seq = p_seq AND l.fence = p_fence AND l.nonce = p_nonce;
        IF FOUND THEN
            PERFORM {schema}.spend_key_units_1(p_now, held.lane, p_seq, p_delay);
            RETURN;
        END IF;
    ELSIF p_kind NOT IN ('t', 'g') THEN  -- `record_steps_1` has stored the steps whose token matches a lease
        DELETE FROM {schema}.lease
        WHERE session = p_session AND seq = p_seq AND fence = p_fence AND nonce = p_nonce
        RETURNING * INTO held;
    END IF;
    IF held.seq IS NULL THEN
        code := {schema}.decide_unmatched_1(p_seq, p_id, p_fence, p_nonce);
        RETURN;
    END IF;
    key_numbers := held.key_numbers;
    attempts := ROW(held.seq, held.due, held.leased_at, held.fence, held.failures, held.lost, held.extra_flags,
        int4send(held.fence) || held.nonce);
    IF p_kind IN ('r', 'f') THEN
        PERFORM {schema}.add_error_1(p_seq, p_now, p_body);
        attempts.failures := attempts.failures + 1;
        attempts.extra_flags := attempts.extra_flags | 1;
    END IF;
    IF p_kind = 'c' THEN
        to_notify := {schema}.finish_job_1(p_now, attempts, p_session, 1::int2, NULL, p_body, p_text = 'keep');
    ELSIF p_kind = 'x' THEN
        to_notify := {schema}.finish_job_1(p_now, attempts, p_session, 3::int2, p_text, NULL);
    ELSIF p_kind = 'f' THEN
        to_notify := {schema}.fail_job_1(p_now, attempts, p_session, p_text, p_body);
    ELSE
        IF p_kind = 'u' THEN
            PERFORM {schema}.refund_keys_1(p_now, held);
        ELSIF p_kind = 'q' AND {schema}.block_keys_1(p_now, held.lane, held.seq, p_delay) THEN
            p_delay := NULL;
        END IF;
        attempts.due := coalesce(p_now + p_delay, attempts.due);  -- without effect if a cancel was requested
        SELECT w.to_notify INTO to_notify FROM {schema}.requeue_1(p_now, held, attempts) w;
    END IF;
END $$;

-- name: decide_unmatched
-- Decide the result of a settlement whose lease the session does not hold.
-- Inputs: seq, id, fence and nonce of the lease
-- Result: a: this token settled the job last; s: stale
-- Atomic: one read of each table that can hold the token
CREATE OR REPLACE FUNCTION {schema}.decide_unmatched_1(p_seq int8, p_id bytea, p_fence int4, p_nonce bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    token bytea := int4send(p_fence) || p_nonce;
BEGIN
    IF EXISTS (SELECT FROM {schema}.attempt_state WHERE seq = p_seq AND settled_token = token)
        OR EXISTS (
            SELECT FROM {schema}.finished_job d, {schema}.horizon h
            WHERE d.id = p_id AND d.seq = p_seq AND d.settled_token = token
                AND h.what = 'completed' AND (d.finished_at, d.seq) > (h.finished_at, h.seq)
        )
    THEN
        RETURN 'a';
    END IF;
    RETURN 's';
END $$;

-- name: finish_job
-- End a job without a lease as completed or cancelled. If it is a member of a flow, the caller continues with `continue_flows_1`.
-- Inputs: the time; its attempt state; the session whose attempt ended it (NULL: it was waiting); 1 completed or
--   3 cancelled; the reason; the result (NULL: none); whether its payload is kept
-- Result: the lane of the job if its unique key was released, else NULL
CREATE OR REPLACE FUNCTION {schema}.finish_job_1(
    p_now int8, p_attempts {schema}.attempt_state, p_session int4, p_state int2, p_reason text, p_result bytea,
    p_keep bool DEFAULT false
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    DELETE FROM {schema}.job WHERE seq = p_attempts.seq
    RETURNING seq, lane, id, digest, created_at, unique_key, flow, options, CASE WHEN p_keep THEN payload END AS payload,
        CASE WHEN p_attempts.extra_flags > 0
            THEN {schema}.get_job_extras_1(seq, p_attempts.extra_flags) END AS kept
    INTO STRICT body;
    INSERT INTO {schema}.finished_job (seq, due, created_at, started_at, finished_at, lane, failures, lost, ended_by,
        state, id, digest, settled_token, reason, options, history_at, history, fraction, message, payload)
    VALUES (body.seq, nullif(p_attempts.due, body.created_at), body.created_at, p_attempts.started_at, p_now, body.lane,
        nullif(p_attempts.failures, 0), nullif(p_attempts.lost, 0), p_session, p_state, body.id, body.digest,
        p_attempts.settled_token, p_reason, body.options, (body.kept).history_at, (body.kept).history,
        (body.kept).fraction, (body.kept).message, body.payload);
    IF p_result IS NOT NULL THEN
        INSERT INTO {schema}.result (seq, finished_at, body) VALUES (body.seq, p_now, p_result);
    END IF;
    PERFORM {schema}.drop_attempt_state_1(ARRAY[body.seq], p_attempts.extra_flags);
    IF body.flow IS NOT NULL THEN
        PERFORM {schema}.note_changes_1(ARRAY[body.id], ARRAY[body.flow],
            CASE p_state WHEN 1 THEN 'succeeded' ELSE 'failed' END, CASE p_state WHEN 1 THEN 'completed' ELSE 'cancelled' END);
    END IF;
    RETURN {schema}.free_unique_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: fail_job
-- End a job without a lease as failed. It becomes a dead letter and keeps its payload. If it is a member of a flow, the caller
-- continues with `continue_flows_1`.
-- Inputs: the time; its attempt state; the session whose attempt ended it; the reason; the last error (JSON)
-- Result: the lane of the job if its unique key was released, else NULL
CREATE OR REPLACE FUNCTION {schema}.fail_job_1(
    p_now int8, p_attempts {schema}.attempt_state, p_session int4, p_reason text, p_error bytea
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    body record;
BEGIN
    PERFORM {schema}.save_attempt_state_1(p_attempts);
    INSERT INTO {schema}.dead_letter (seq, finished_at, reason, ended_by, fingerprint)
    SELECT p_attempts.seq, p_now, p_reason, s.id, {schema}.get_fingerprint_1(p_error)
    FROM {schema}.session s WHERE s.number = p_session;
    SELECT seq, lane, unique_key, flow, id INTO STRICT body FROM {schema}.job WHERE seq = p_attempts.seq;
    IF body.flow IS NOT NULL THEN
        PERFORM FROM {schema}.job j WHERE j.seq = body.seq FOR NO KEY UPDATE;  -- see `find_change_1`
        PERFORM {schema}.note_changes_1(ARRAY[body.id], ARRAY[body.flow], 'failed', 'failed');
    END IF;
    RETURN {schema}.free_unique_key_1(body.seq, body.lane, body.unique_key);
END $$;

-- name: get_fingerprint
-- Read the fingerprint of an error.
-- Inputs: the error (JSON)
-- Result: its fingerprint; empty: it has none
-- The key is found as text, because the server's JSON operators fail on the NUL that a message may contain. Quotes inside
-- a message are escaped, so only the key itself matches.
CREATE OR REPLACE FUNCTION {schema}.get_fingerprint_1(p_error bytea) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT split_part(split_part(convert_from(p_error, 'UTF8'), '"fingerprint":"', 2), '"', 1)
$$;

-- name: requeue
-- Make a job wait again after its lease was deleted. If a cancel was requested, end the job as cancelled; or send the cancel to
-- the durable run, if a worker has to end it.
-- Inputs: the time; the deleted lease; its attempt state
-- Result: whether the job waits; the lane to notify (NULL: none)
CREATE OR REPLACE FUNCTION {schema}.requeue_1(
    p_now int8, p_lease {schema}.lease, p_attempts {schema}.attempt_state, OUT waits bool, OUT to_notify int4
) LANGUAGE plpgsql AS $$
BEGIN
    waits := NOT p_lease.cancel_requested;
    IF NOT waits THEN
        p_attempts.due := p_lease.due;  -- a requested delay does not apply
        waits := {schema}.send_cancel_1(p_now, p_attempts.seq);
    END IF;
    IF waits THEN
        PERFORM {schema}.save_attempt_state_1(p_attempts);
        PERFORM {schema}.make_waiting_1(p_now, p_attempts.seq, p_attempts.due, p_lease.lane,
            CAST(CASE WHEN p_attempts.failures > 0 THEN 2 ELSE 1 END AS int2));
        to_notify := CASE WHEN p_attempts.due <= p_now THEN p_lease.lane END;
    ELSE
        to_notify := {schema}.finish_job_1(p_now, p_attempts, p_lease.session, 3::int2, NULL, NULL);
    END IF;
END $$;

-- name: add_error
-- Add an error to the history of a job.
-- Inputs: seq; the time; the error (JSON)
CREATE OR REPLACE FUNCTION {schema}.add_error_1(p_seq int8, p_now int8, p_body bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.attempt_error (seq, position, occurred_at, body)
    SELECT p_seq, coalesce(max(position), 0) + 1, p_now, p_body FROM {schema}.attempt_error WHERE seq = p_seq;
END $$;

-- name: save_attempt_state
-- Insert or update the attempt state of a job.
-- Inputs: the row of `attempt_state`
CREATE OR REPLACE FUNCTION {schema}.save_attempt_state_1(p_attempts {schema}.attempt_state) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.attempt_state (seq, due, started_at, fence, failures, lost, extra_flags, settled_token)
    VALUES (p_attempts.seq, p_attempts.due, p_attempts.started_at, p_attempts.fence, p_attempts.failures, p_attempts.lost,
        p_attempts.extra_flags, p_attempts.settled_token)
    ON CONFLICT (seq) DO UPDATE SET due = excluded.due, started_at = excluded.started_at,
        fence = excluded.fence, failures = excluded.failures, lost = excluded.lost,
        extra_flags = excluded.extra_flags, settled_token = excluded.settled_token;
END $$;

-- name: get_job_extras
-- Read the history and the progress of a job.
-- Inputs: seq; flags: 1: the job has a history, 2: it has progress
-- Result: both; NULL for what it does not have
-- Atomic: part of the caller's transaction. It is a function so that the plans for jobs without extras do not contain it.
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
-- Delete attempt states, histories and progress of jobs.
-- Inputs: seqs; flags: 1: some jobs have a history, 2: some have progress
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
-- Release the unique key of a job that ended. A key with a fixed validity is kept.
-- Inputs: seq and lane of the job; its key (NULL: it has none)
-- Result: its lane if the key was released, else NULL
CREATE OR REPLACE FUNCTION {schema}.free_unique_key_1(p_seq int8, p_lane int4, p_key text) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    IF p_key IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN ({schema}.free_unique_keys_1(ARRAY[p_seq], ARRAY[p_lane], ARRAY[p_key]))[1];
END $$;

-- name: free_unique_keys
-- Release the unique keys of jobs that ended. Keys with a fixed validity are kept.
-- Inputs: seqs, lanes and keys of the jobs
-- Result: the lanes of the jobs whose keys were released
-- Locks: the keys in the order of name and key. A key that another transaction has locked is skipped, because a caller's
--   transaction that enqueued the key may stay open for long. `holds_key_1` finds later that its job has ended, and
--   `prune_keys_1` deletes the row.
CREATE OR REPLACE FUNCTION {schema}.free_unique_keys_1(p_seqs int8[], p_lanes int4[], p_keys text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    freed int8[];
BEGIN
    WITH deleted AS (
        DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM unnest(p_seqs, p_lanes, p_keys) AS k (seq, lane, key)
            JOIN {schema}.lane a ON a.id = k.lane
            JOIN {schema}.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
            WHERE u.valid_until IS NULL
            ORDER BY u.name, u.key FOR UPDATE OF u SKIP LOCKED
        )) RETURNING seq
    )
    SELECT array_agg(d.seq) INTO freed FROM deleted d;
    IF cardinality(freed) IS DISTINCT FROM cardinality(p_seqs) THEN
        INSERT INTO {schema}.unreleased_key (name, key, seq)
        SELECT u.name, u.key, u.seq FROM unnest(p_seqs, p_lanes, p_keys) AS k (seq, lane, key)
        JOIN {schema}.lane a ON a.id = k.lane
        JOIN {schema}.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
        WHERE u.valid_until IS NULL;
    END IF;
    RETURN (SELECT array_agg(DISTINCT k.lane) FROM unnest(p_seqs, p_lanes) AS k (seq, lane) WHERE k.seq = ANY (freed));
END $$;

-- name: settle_in_caller
-- Settle a job as the last step of the transaction of its handler, or of a hook for its failed attempt.
-- Inputs:
--   p_now                           the time or NULL
--   p_identity                      the identity of the backend that the caller means
--   p_channel                       the notification channel
--   p_session                       the id of the session
--   p_kind, p_delay, p_text, p_body the settlement, as for `settle_one_1`: c, r, f, t or g
--   p_seq, p_id, p_fence, p_nonce   the lease
-- Result: 'done', 'already settled' or 'stale'; 'done with flows': call `continue_flows_in_caller_1` after the commit, so that
--   workers do not wait for this transaction to end; 'session lost': the session is not alive; 'other database': the database
--   belongs to another backend
-- Locks: the tables `limit_rule` and `paused_queue` in ROW SHARE; the limits for which the job counts; its unique key; the
--   rows of the job; all until the caller's transaction ends. Exchanges wait for the limit and for the turns of the tenant. The
--   worker commits at once. If it is stopped before the commit, the server ends the connection after 5 s.
--   Of a step of a durable run only its lease, and the row of `run` if that is new.
-- Atomic: part of the caller's transaction. The lease is deleted, or locked for a step, by its whole token, so a job that another
--   session holds now is not changed.
CREATE OR REPLACE FUNCTION {schema}.settle_in_caller_1(
    p_now int8, p_identity text, p_channel text, p_session text, p_kind text, p_seq int8, p_id bytea, p_fence int4,
    p_nonce bytea, p_delay int8, p_text text, p_body bytea
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    session_number int4;
    outcome record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.meta WHERE identity = p_identity) THEN
        RETURN 'other database';
    END IF;
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO session_number FROM {schema}.session WHERE id = p_session AND ended_at IS NULL AND left_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'session lost';
    END IF;
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    IF p_kind IN ('t', 'g') THEN
        PERFORM FROM {schema}.lease l WHERE l.session = session_number AND l.seq = p_seq AND l.fence = p_fence AND l.nonce = p_nonce
        FOR UPDATE;
        SELECT s.codes AS code INTO outcome FROM {schema}.settle_each_1(now, session_number, p_kind, ARRAY[p_seq], ARRAY[p_id],
            ARRAY[p_fence], ARRAY[p_nonce], ARRAY[p_body], ARRAY[p_delay], ARRAY[p_text], NULL) s;
        RETURN CASE outcome.code WHEN 'd' THEN 'done' WHEN 'a' THEN 'already settled' ELSE 'stale' END;
    END IF;
    LOCK TABLE {schema}.limit_rule, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM {schema}.lock_limits_1(ARRAY(
        SELECT u.limit_name FROM {schema}.lease l JOIN {schema}.limit_use u ON u.number = ANY (l.key_numbers)
        WHERE l.session = session_number AND l.seq = p_seq
    ));
    PERFORM {schema}.lock_share_classes_1('{}', session_number, ARRAY[p_seq]);
    PERFORM {schema}.settle_charges_1(now, session_number, ARRAY[p_seq], NULL, ARRAY[p_fence], ARRAY[p_nonce]);
    SELECT * INTO outcome FROM {schema}.settle_one_1(
        now, session_number, p_kind, p_seq, p_id, p_fence, p_nonce, p_delay, p_text, p_body, NULL);
    IF outcome.code = 'd' THEN
        PERFORM {schema}.notify_queues_1(p_channel, ARRAY(SELECT queue FROM {schema}.lane WHERE id = outcome.to_notify)
            || {schema}.release_keys_1(now, outcome.key_numbers));
    END IF;
    RETURN CASE WHEN outcome.code = 'd' AND EXISTS (SELECT FROM {schema}.flow_change) THEN 'done with flows'
        WHEN outcome.code = 'd' THEN 'done' WHEN outcome.code = 'a' THEN 'already settled' ELSE 'stale' END;
END $$;
