-- Durable runs: their steps, the signals to them, and their waits. backends/planning decides the same in Python.
--
-- A suspended run has a row in `dependent` with `is_run`, and a condition with `any` for each source: a flow, a signal or a time. The
-- first source that is met resumes it, and its other conditions are deleted. Flows meet conditions in `flows.sql`, signals in
-- `send_signals_1`, and times in `resume_due_1`, which reads them in the order of the primary key. A source that is met when the run
-- suspends does not suspend it at all.
-- Locks: rows of `run` by seq, before unique keys and rows of jobs. First the missing rows are inserted by seq, then those are locked
-- whose jobs get signals, or suspend and wait for signals. So either the signal is stored before the run suspends, and it finds the
-- signal; or the sender sees the condition. The lock also numbers the signals of a job. Rows of `dependent` are locked with SKIP LOCKED. A signal whose run another transaction
-- has locked is left in `flow_change`, as changes of flows are.
-- A run that a worker has to end (it has the step 0) is not cancelled: `send_cancel_1` stores a signal without name and id. Who
-- cancels a job holds it where it waits, so no worker runs it. Who cancels many locks their rows of `run` first.
-- Steps and signals outlive the record of their job until `prune_runs_1` removes them. They have its seq, which no other job gets.

-- name: prepare_runs
-- Add and lock the rows of `run` that settlements need.
-- Inputs: the time; the kinds of the settlements; `new_runs` and `locked_runs` of `match_leases_1`
-- Locks: see the header of this file
CREATE OR REPLACE FUNCTION {schema}.prepare_runs_1(p_now int8, p_kinds text, p_new_runs int8[], p_locked_runs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_new_runs IS NOT NULL THEN
        PERFORM {schema}.add_runs_1(p_now, p_new_runs);
    END IF;
    IF p_locked_runs IS NOT NULL THEN
        PERFORM {schema}.lock_runs_1(p_locked_runs);
    END IF;
    IF strpos(p_kinds, 's') > 0 THEN
        PERFORM {schema}.note_feature_1('runs');
    END IF;
END $$;

-- name: add_runs
-- Add the rows of `run` that jobs do not have.
-- Inputs: the time; the seqs of the jobs
-- Locks: waits for another transaction that is adding one of the rows
CREATE OR REPLACE FUNCTION {schema}.add_runs_1(p_now int8, p_seqs int8[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
BEGIN
    INSERT INTO {schema}.run (seq, checked_at, id)
    SELECT j.seq, p_now, j.id FROM {schema}.job j
    WHERE j.seq = ANY (p_seqs) AND NOT EXISTS (SELECT FROM {schema}.run r WHERE r.seq = j.seq)
    ORDER BY j.seq ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM {schema}.note_feature_1('runs');
    END IF;
END $$;

-- name: lock_runs
-- Lock rows of `run`.
-- Inputs: the seqs of the jobs
-- Locks: the rows by seq
CREATE OR REPLACE FUNCTION {schema}.lock_runs_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
BEGIN
    PERFORM FROM {schema}.run r WHERE r.seq = ANY (p_seqs) ORDER BY r.seq FOR NO KEY UPDATE;
END $$;

-- name: lock_cancelled_runs
-- Lock the rows of `run` of jobs that are about to be cancelled together, or to be released together after a cancel was requested.
-- Inputs: the seqs of the jobs
-- Locks: the rows by seq
CREATE OR REPLACE FUNCTION {schema}.lock_cancelled_runs_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(p_seqs) > 1 AND EXISTS (SELECT FROM {schema}.run) THEN
        PERFORM {schema}.lock_runs_1(p_seqs);
    END IF;
END $$;

-- name: add_steps
-- Store steps that take no signal and that their runs do not have, if they are not the first of their runs and the leases have no
-- failures and no losses.
-- Inputs: the time; the session; seqs, fences, nonces, numbers, bodies and texts of the settlements, as for `settle_each_1`
-- Result: whether all were such steps. If not, some are stored, and `record_steps_1` stores the others.
CREATE OR REPLACE FUNCTION {schema}.add_steps_1(
    p_now int8, p_session int4, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_numbers int8[], p_bodies bytea[], p_texts text[]
) RETURNS bool
LANGUAGE plpgsql SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off AS $$
DECLARE
    added int4;
BEGIN
    INSERT INTO {schema}.step (seq, number, at, body)
    SELECT u.seq, u.number, p_now, u.body
    FROM unnest(p_seqs, p_fences, p_nonces, p_numbers, p_bodies, p_texts) AS u (seq, fence, nonce, number, body, takes)
    JOIN {schema}.lease l ON l.session = p_session AND l.seq = u.seq AND l.fence = u.fence AND l.nonce = u.nonce
    WHERE u.takes IS NULL AND l.failures = 0 AND l.lost = 0 AND EXISTS (SELECT FROM {schema}.run r WHERE r.seq = u.seq)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added = cardinality(p_seqs);
END $$;

-- name: record_steps
-- Store the steps among settlements. A number that the run has is not stored again.
-- Inputs: the time; the session; the roles of the settlements and whether a lease of a step has failures or losses, as of
--   `match_leases_1`; seqs, bodies, numbers of steps and numbers of the signals that they take, as in `settle_each_1`
-- Atomic: the steps are stored by one statement; one after the other if one of them removes the others of its run.
CREATE OR REPLACE FUNCTION {schema}.record_steps_1(
    p_now int8, p_session int4, p_roles text, p_seqs int8[], p_bodies bytea[], p_numbers int8[], p_takes text[], p_has_counts bool
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF strpos(p_roles, 'g') = 0 THEN
        PERFORM {schema}.store_steps_1(p_now, p_session, p_roles, p_seqs, p_bodies, p_numbers, p_takes, p_has_counts);
        RETURN;
    END IF;
    FOR n IN 1..cardinality(p_seqs) LOOP
        IF substr(p_roles, n, 1) = 'g' THEN
            DELETE FROM {schema}.step s WHERE s.seq = p_seqs[n]
                AND NOT EXISTS (SELECT FROM {schema}.step k WHERE k.seq = p_seqs[n] AND k.number = p_numbers[n]);
        END IF;
        IF substr(p_roles, n, 1) IN ('t', 'g') THEN
            PERFORM {schema}.store_steps_1(
                p_now, p_session, 't', p_seqs[n:n], p_bodies[n:n], p_numbers[n:n], p_takes[n:n], p_has_counts);
        END IF;
    END LOOP;
END $$;

-- name: store_steps
-- Store the steps among settlements, of which none removes others.
-- Inputs: as for `record_steps_1`
-- Locks: the leases, if their failures and losses become 0
CREATE OR REPLACE FUNCTION {schema}.store_steps_1(
    p_now int8, p_session int4, p_roles text, p_seqs int8[], p_bodies bytea[], p_numbers int8[], p_takes text[], p_has_counts bool
) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off SET enable_hashjoin TO on AS $$
BEGIN
    IF NOT p_has_counts AND array_remove(p_takes, NULL) = '{}' THEN
        INSERT INTO {schema}.step (seq, number, at, body)
        SELECT u.seq, u.number, p_now, u.body FROM unnest(string_to_array(p_roles, NULL), p_seqs, p_numbers, p_bodies)
            AS u (role, seq, number, body)
        WHERE u.role = 't' ON CONFLICT DO NOTHING;
        RETURN;
    END IF;
    WITH given AS MATERIALIZED (
        SELECT DISTINCT ON (u.seq, u.number) u.seq, u.number, u.body, CAST(u.takes AS int8) AS takes
        FROM unnest(string_to_array(p_roles, NULL), p_seqs, p_numbers, p_bodies, p_takes) WITH ORDINALITY
            AS u (role, seq, number, body, takes, place)
        WHERE u.role = 't' ORDER BY u.seq, u.number, u.place
    ), stored AS (
        INSERT INTO {schema}.step (seq, number, at, body) SELECT g.seq, g.number, p_now, g.body FROM given g
        ON CONFLICT DO NOTHING RETURNING seq, number
    ), taken AS (
        UPDATE {schema}.signal s SET is_unread = false FROM given g JOIN stored t ON t.seq = g.seq AND t.number = g.number
        WHERE s.seq = g.seq AND s.number = g.takes AND s.is_unread
    )
    UPDATE {schema}.lease l SET failures = 0, lost = 0 FROM (SELECT DISTINCT t.seq FROM stored t WHERE t.number <> 0) t
    WHERE l.session = p_session AND l.seq = t.seq AND (l.failures > 0 OR l.lost > 0);
END $$;

-- name: suspend_runs
-- Suspend the durable runs among settlements whose role is `s`. Those for which something has come that they wait for are resumed.
-- Inputs: the time; the session; roles, seqs, fences and nonces of the settlements; the sources of each as a JSON array of [kind,
--   hexadecimal id]: flows and signals; after how many microseconds it is resumed (NULL: never)
-- Result:
--   left_places              indexes of the settlements of runs to which a cancel was requested; NULL: none
--   to_notify, key_numbers   as of `settle_each_1`
-- Locks: the leases; the caller holds those of `prepare_runs_1`
-- Atomic: a flow that is ending in another transaction is noted in `flow_change`. `resolve_flows_1` looks at it again, when it has the
--   lock of the flow.
CREATE OR REPLACE FUNCTION {schema}.suspend_runs_1(
    p_now int8, p_session int4, p_roles text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_texts text[], p_delays int8[],
    OUT left_places int4[], OUT to_notify int4[], OUT key_numbers int8[]
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO on AS $$
DECLARE
    suspended record;
    due int8[];
BEGIN
    WITH given AS MATERIALIZED (
        SELECT u.seq, u.fence, u.nonce, p_now + u.delay AS resumed_at
        FROM unnest(string_to_array(p_roles, NULL), p_seqs, p_fences, p_nonces, p_delays) AS u (role, seq, fence, nonce, delay)
        WHERE u.role = 's'
    ), ended_leases AS (
        DELETE FROM {schema}.lease l USING given g
        WHERE l.session = p_session AND l.seq = g.seq AND l.fence = g.fence AND l.nonce = g.nonce AND NOT l.cancel_requested
        RETURNING l.*, g.resumed_at
    ), saved AS (
        INSERT INTO {schema}.attempt_state (seq, due, started_at, fence, failures, lost, extra_flags, settled_token)
        SELECT e.seq, e.due, e.leased_at, e.fence, e.failures, e.lost, e.extra_flags, int4send(e.fence) || e.nonce
        FROM ended_leases e
        ON CONFLICT (seq) DO UPDATE SET due = excluded.due, started_at = excluded.started_at, fence = excluded.fence,
            failures = excluded.failures, lost = excluded.lost, extra_flags = excluded.extra_flags,
            settled_token = excluded.settled_token
    ), waiting AS (
        INSERT INTO {schema}.dependent (seq, flow, root, lane, is_run, id)
        SELECT j.seq, j.flow, CASE WHEN j.flow IS NOT NULL
            THEN (SELECT coalesce(f.root, f.number) FROM {schema}.flow f WHERE f.number = abs(j.flow)) END, j.lane, true, j.id
        FROM {schema}.job j WHERE j.seq = ANY (ARRAY(SELECT e.seq FROM ended_leases e))
    ), timed AS (
        INSERT INTO {schema}.condition (waiter, source_kind, source, needs)
        SELECT e.seq, 'time', {schema}.encode_time_1(e.resumed_at), 'any' FROM ended_leases e WHERE e.resumed_at IS NOT NULL
    )
    SELECT array_agg(e.seq) AS seqs, array_agg(e.seq) FILTER (WHERE e.resumed_at <= p_now) AS due,
        CAST(string_to_array(string_agg(array_to_string(e.key_numbers, ','), ','), ',') AS int8[]) AS key_numbers
    INTO suspended FROM ended_leases e;
    key_numbers := suspended.key_numbers;
    IF cardinality(suspended.seqs) IS DISTINCT FROM length(p_roles) - length(replace(p_roles, 's', '')) THEN
        SELECT array_agg(CAST(u.place AS int4)) INTO left_places
        FROM unnest(string_to_array(p_roles, NULL), p_seqs) WITH ORDINALITY AS u (role, seq, place)
        WHERE u.role = 's' AND (u.seq = ANY (suspended.seqs)) IS NOT TRUE;
    END IF;
    due := suspended.due;
    IF strpos(array_to_string(p_texts, ''), '[["') > 0 THEN
        due := due || {schema}.wait_for_sources_1(suspended.seqs, p_roles, p_seqs, p_texts);
    END IF;
    IF due IS NOT NULL THEN
        to_notify := {schema}.resume_runs_1(p_now, due);
    END IF;
END $$;

-- name: wait_for_sources
-- Store the conditions of suspended runs on flows and signals.
-- Inputs: the seqs of the runs; roles, seqs and texts of the settlements, as for `suspend_runs_1`
-- Result: the runs for which a flow has ended or a signal has come; NULL: none
CREATE OR REPLACE FUNCTION {schema}.wait_for_sources_1(p_suspended int8[], p_roles text, p_seqs int8[], p_texts text[]) RETURNS int8[]
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
    met int8[];
BEGIN
    WITH sources AS MATERIALIZED (
        SELECT DISTINCT u.seq, s ->> 0 AS kind, decode(s ->> 1, 'hex') AS id
        FROM unnest(string_to_array(p_roles, NULL), p_seqs, p_texts) AS u (role, seq, sources),
        LATERAL json_array_elements(CASE WHEN u.role = 's' AND u.seq = ANY (p_suspended)
            THEN CAST(u.sources AS json) ELSE '[]' END) s
    ), stored AS (
        INSERT INTO {schema}.condition (waiter, source_kind, source, needs) SELECT s.seq, s.kind, s.id, 'any' FROM sources s
    ), noted AS (
        INSERT INTO {schema}.flow_change (root, source_kind, source, change)
        SELECT coalesce(f.root, f.number), 'flow', f.id, 'stored' FROM {schema}.flow f
        WHERE f.id IN (SELECT s.id FROM sources s WHERE s.kind = 'flow')
    )
    SELECT array_agg(DISTINCT s.seq) INTO met FROM sources s WHERE CASE s.kind
        WHEN 'flow' THEN NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.id = s.id AND f.unfinished > 0)
        ELSE EXISTS (
            SELECT FROM {schema}.signal g JOIN {schema}.job j ON j.seq = g.seq WHERE g.seq = s.seq AND g.is_unread
                AND convert_to({schema}.decode_id_1(j.id) || '/' || g.name, 'UTF8') = s.id
        ) END;
    RETURN met;
END $$;

-- name: encode_time
-- Return the source of a condition on a time.
-- Inputs: the time
-- Result: its digits, in the order of times; a time before 1970 is the first
CREATE OR REPLACE FUNCTION {schema}.encode_time_1(p_time int8) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT decode(lpad(CAST(GREATEST(0, p_time) AS text), 20, '0'), 'escape')
$$;

-- name: resume_runs
-- Resume durable runs that are suspended, and delete the conditions for which they waited. They are due now.
-- Inputs: the time; the seqs of the jobs. Their rows of `dependent` are locked.
-- Result: the lane of each job that is due now; NULL: none
CREATE OR REPLACE FUNCTION {schema}.resume_runs_1(p_now int8, p_seqs int8[]) RETURNS int4[]
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
    resumed int8[];
    lanes int4[];
BEGIN
    WITH deleted AS (
        DELETE FROM {schema}.dependent d WHERE d.seq = ANY (p_seqs) AND d.is_run AND d.cancelled_at IS NULL RETURNING d.seq
    )
    SELECT array_agg(d.seq) INTO resumed FROM deleted d;
    IF resumed IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM {schema}.condition c WHERE c.waiter = ANY (resumed) AND c.needs = 'any';
    UPDATE {schema}.attempt_state p SET due = p_now WHERE p.seq = ANY (resumed) AND p.due < p_now;
    INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status)
    SELECT p.due, p.seq, j.lane, CASE WHEN p.failures > 0 THEN 2 ELSE 1 END
    FROM {schema}.attempt_state p JOIN {schema}.job j ON j.seq = p.seq WHERE p.seq = ANY (resumed) AND p.due > p_now;
    WITH added AS (
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        SELECT p.due, p.seq, j.lane, CASE WHEN p.failures > 0 THEN 2 ELSE 1 END
        FROM {schema}.attempt_state p JOIN {schema}.job j ON j.seq = p.seq WHERE p.seq = ANY (resumed) AND p.due <= p_now
        ORDER BY j.lane, p.seq RETURNING lane
    )
    SELECT array_agg(a.lane) INTO lanes FROM added a;
    RETURN lanes;
END $$;

-- name: resume_due
-- Resume the durable runs whose time has come, earliest first.
-- Inputs: the time; the maximum number of conditions; a time before which nothing is known to be due
-- Result: the lane of each job that is due now (NULL: none); the earliest time for which a run still waits
-- Locks: rows of `dependent`; those that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.resume_due_1(
    p_now int8, p_limit int4, p_low_water_mark int8, OUT lanes int4[], OUT next_due int8
) LANGUAGE plpgsql SET enable_seqscan TO off SET enable_bitmapscan TO off SET jit TO off AS $$
DECLARE
    first bytea := {schema}.encode_time_1(CASE WHEN p_low_water_mark <= p_now THEN p_low_water_mark END);
    due int8[];
BEGIN
    next_due := {schema}.find_first_time_1(first);
    IF next_due IS NULL OR next_due > p_now THEN
        RETURN;
    END IF;
    due := ARRAY(
        SELECT c.waiter FROM {schema}.condition c
        WHERE c.source_kind = 'time' AND c.source >= first AND c.source <= {schema}.encode_time_1(p_now)
        ORDER BY c.source LIMIT p_limit
    );
    due := ARRAY(SELECT d.seq FROM {schema}.dependent d WHERE d.seq = ANY (due) ORDER BY d.seq FOR UPDATE SKIP LOCKED);
    IF due <> '{}' THEN
        lanes := {schema}.resume_runs_1(p_now, due);
    END IF;
    next_due := {schema}.find_first_time_1(first);
END $$;

-- name: resume_times
-- Resume the durable runs whose time has come, if there were ever durable runs. Calls that apply changes of flows do so.
-- Inputs: the time
-- Result: the lane of each job that is due now; NULL: none
-- Locks: as `resume_due_1`
CREATE OR REPLACE FUNCTION {schema}.resume_times_1(p_now int8) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    resumed int4[];
BEGIN
    IF EXISTS (SELECT FROM {schema}.used_feature f WHERE f.name = 'runs') THEN
        SELECT r.lanes INTO resumed FROM {schema}.resume_due_1(p_now, 250, {schema}.get_lowest_time_1()) r;  -- MAX_RESOLVED
    END IF;
    RETURN resumed;
END $$;

-- name: find_first_time
-- Find the earliest time for which a suspended durable run waits.
-- Inputs: the source of a time before which there is none
-- Result: the time; NULL: there is none
CREATE OR REPLACE FUNCTION {schema}.find_first_time_1(p_first bytea) RETURNS int8
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET enable_bitmapscan TO off AS $$
BEGIN
    RETURN (
        SELECT CAST(encode(c.source, 'escape') AS int8) FROM {schema}.condition c
        WHERE c.source_kind = 'time' AND c.source >= p_first ORDER BY c.source LIMIT 1
    );
END $$;

-- name: find_next_run
-- Find the earliest time for which a suspended durable run waits, if there were ever durable runs.
-- Result: the time; NULL: there is none
CREATE OR REPLACE FUNCTION {schema}.find_next_run_1() RETURNS int8
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.used_feature f WHERE f.name = 'runs') THEN
        RETURN {schema}.find_first_time_1('');
    END IF;
    RETURN NULL;
END $$;

-- name: promote
-- Move scheduled jobs that are due to `ready`, and resume the durable runs whose time has come; then apply the changes of flows.
-- Inputs: the time or NULL; the maximum number of jobs, and the maximum number of conditions
-- Result: the number of jobs that were scheduled; the earliest due time that remains (NULL: none); the queue of each job to notify
-- Locks: as `promote_due_1` and `resume_due_1`; then as `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.promote_1(
    p_now int8, p_limit int4, p_most int4, OUT moved int4, OUT next_due int8, OUT to_notify text[]
) LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    promoted record := {schema}.promote_due_1(now, p_limit, {schema}.get_lowest_time_1());
    resumed record := {schema}.resume_due_1(now, p_most, {schema}.get_lowest_time_1());
BEGIN
    moved := promoted.moved;
    next_due := LEAST(promoted.next_due, resumed.next_due);
    to_notify := ARRAY(
        SELECT a.queue FROM unnest(promoted.lanes || resumed.lanes) l (lane) JOIN {schema}.lane a ON a.id = l.lane
    ) || {schema}.continue_flows_1(p_now);
END $$;

-- name: send_signals
-- Store signals to jobs, and resume the durable runs that wait for them.
-- Inputs: the time or NULL; arrays of the same length: the ids of the jobs, names, ids and payloads of the signals; how many unread
--   signals a job has at most, and how many later ones let it forget one that was taken (MAX_UNREAD_SIGNALS in core/runs.py)
-- Result: one letter for each signal: s stored, e exists, f the job has ended, u unknown job, l the limit is reached; the queue of each
--   job to notify
-- Locks: rows of `run`; then rows of `dependent`, with SKIP LOCKED: see the header of this file
-- Atomic: one transaction. Signals to one job are stored one transaction after the other.
CREATE OR REPLACE FUNCTION {schema}.send_signals_1(
    p_now int8, p_ids bytea[], p_names text[], p_keys text[], p_payloads bytea[], p_most int4, OUT codes text, OUT to_notify text[]
) LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    seqs int8[] := ARRAY(
        SELECT j.seq FROM {schema}.job j
        WHERE j.id = ANY (p_ids) AND NOT EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = j.seq)
    );
    lanes int4[];
BEGIN
    IF seqs <> '{}' THEN
        PERFORM {schema}.add_runs_1(now, seqs);
        PERFORM {schema}.lock_runs_1(seqs);
    END IF;
    WITH given AS MATERIALIZED (
        SELECT u.*, j.seq, row_number() OVER (PARTITION BY j.seq, u.key ORDER BY u.place) AS nth
        FROM unnest(p_ids, p_names, p_keys, p_payloads) WITH ORDINALITY AS u (id, name, key, payload, place)
        LEFT JOIN {schema}.job j ON j.id = u.id AND j.seq = ANY (seqs)
            AND NOT EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = j.seq)
    ), new AS MATERIALIZED (
        SELECT g.seq, g.key, g.name, g.payload, g.place, row_number() OVER (PARTITION BY g.seq ORDER BY g.place) AS number
        FROM given g WHERE g.seq IS NOT NULL AND g.nth = 1
            AND NOT EXISTS (SELECT FROM {schema}.signal s WHERE s.seq = g.seq AND s.id = g.key)
    ), counted AS MATERIALIZED (
        SELECT n.seq, r.last_signal,
            (SELECT count(*) FROM {schema}.signal s WHERE s.seq = n.seq AND s.is_unread AND s.name <> '') AS unread
        FROM (SELECT DISTINCT n.seq FROM new n) n JOIN {schema}.run r ON r.seq = n.seq
    ), stored AS (
        INSERT INTO {schema}.signal (seq, number, at, is_unread, id, name, payload)
        SELECT n.seq, c.last_signal + n.number, now, true, n.key, n.name, n.payload FROM new n JOIN counted c ON c.seq = n.seq
        WHERE c.unread + n.number <= p_most ORDER BY n.place RETURNING seq, id, number
    ), numbered AS (
        UPDATE {schema}.run r SET last_signal = s.last FROM (
            SELECT s.seq, max(s.number) AS last FROM stored s GROUP BY s.seq
        ) s WHERE r.seq = s.seq
    )
    SELECT string_agg(CASE WHEN g.seq IS NULL THEN CASE WHEN {schema}.has_ended_1(g.id) THEN 'f' ELSE 'u' END
            WHEN n.seq IS NULL THEN 'e' WHEN s.seq IS NULL THEN 'l' WHEN g.nth = 1 THEN 's' ELSE 'e' END, '' ORDER BY g.place)
    INTO codes FROM given g
    LEFT JOIN new n ON n.seq = g.seq AND n.key = g.key LEFT JOIN stored s ON s.seq = g.seq AND s.id = g.key;
    IF codes ~ 's' THEN
        DELETE FROM {schema}.signal s USING {schema}.run r
        WHERE r.seq = ANY (seqs) AND r.last_signal > p_most
            AND s.seq = r.seq AND s.number <= r.last_signal - p_most AND NOT s.is_unread AND s.id <> '';
        lanes := {schema}.resume_times_1(now) || {schema}.wake_runs_1(now, ARRAY(
            SELECT DISTINCT convert_to({schema}.decode_id_1(u.id) || '/' || u.name, 'UTF8')
            FROM unnest(string_to_array(codes, NULL), p_ids, p_names) AS u (code, id, name) WHERE u.code = 's'
        ));
    END IF;
    to_notify := ARRAY(SELECT a.queue FROM unnest(lanes) l (lane) JOIN {schema}.lane a ON a.id = l.lane);
END $$;

-- name: has_ended
-- Test whether a job has ended.
-- Inputs: the id of the job
-- Result: whether its record is kept, and it completed, failed or was cancelled
CREATE OR REPLACE FUNCTION {schema}.has_ended_1(p_id bytea) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.job j JOIN {schema}.dead_letter d ON d.seq = j.seq WHERE j.id = p_id)
        OR {schema}.find_digest_1(p_id, {schema}.get_lowest_time_1(), true) IS NOT NULL;
END $$;

-- name: wake_runs
-- Resume the durable runs that wait for signals which were stored.
-- Inputs: the time; the sources for which the signals stand. The rows of `run` of their jobs are locked.
-- Result: the lane of each job that is due now, or is left; NULL: none
-- Locks: rows of `dependent`. The sources of those that another transaction has locked are left in `flow_change`, for a worker that
--   is woken.
CREATE OR REPLACE FUNCTION {schema}.wake_runs_1(p_now int8, p_sources bytea[]) RETURNS int4[]
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
    waiting int8[] := ARRAY(
        SELECT DISTINCT c.waiter FROM {schema}.condition c WHERE c.source_kind = 'signal' AND c.source = ANY (p_sources)
    );
    locked int8[];
    left_lanes int4[];
BEGIN
    IF waiting = '{}' THEN
        RETURN NULL;
    END IF;
    locked := ARRAY(SELECT d.seq FROM {schema}.dependent d WHERE d.seq = ANY (waiting) ORDER BY d.seq FOR UPDATE SKIP LOCKED);
    IF cardinality(locked) < cardinality(waiting) THEN
        INSERT INTO {schema}.flow_change (source_kind, source, change)
        SELECT DISTINCT 'signal', c.source, 'stored' FROM {schema}.condition c
        WHERE c.source_kind = 'signal' AND c.source = ANY (p_sources) AND c.waiter <> ALL (locked);
        left_lanes := ARRAY(SELECT d.lane FROM {schema}.dependent d WHERE d.seq = ANY (waiting) AND d.seq <> ALL (locked));
    END IF;
    RETURN {schema}.resume_runs_1(p_now, locked) || left_lanes;
END $$;

-- name: has_signal
-- Test whether a job that waits for a signal has it.
-- Inputs: the source of the condition
-- Result: whether an unread signal is stored
CREATE OR REPLACE FUNCTION {schema}.has_signal_1(p_source bytea) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.condition c JOIN {schema}.dependent d ON d.seq = c.waiter JOIN {schema}.signal s ON s.seq = d.seq
        WHERE c.source_kind = 'signal' AND c.source = p_source AND s.is_unread
            AND convert_to({schema}.decode_id_1(d.id) || '/' || s.name, 'UTF8') = p_source
    );
END $$;

-- name: needs_cleanup
-- Test whether a worker has to end a job when it is cancelled.
-- Inputs: the seq of the job
-- Result: whether it is a durable run with the step 0
CREATE OR REPLACE FUNCTION {schema}.needs_cleanup_1(p_seq int8) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.step s WHERE s.seq = p_seq AND s.number = 0);
END $$;

-- name: send_cancel
-- Ask a durable run to end as cancelled, if a worker has to end it.
-- Inputs: the time; the seq of the job. The caller holds the job where it waits, or has deleted its lease.
-- Result: whether a worker has to end it; then the signal is stored, once
-- Locks: its row of `run`
CREATE OR REPLACE FUNCTION {schema}.send_cancel_1(p_now int8, p_seq int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT {schema}.needs_cleanup_1(p_seq) THEN
        RETURN false;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.signal s WHERE s.seq = p_seq AND s.id = '') THEN
        WITH numbered AS (
            UPDATE {schema}.run r SET last_signal = r.last_signal + 1 WHERE r.seq = p_seq RETURNING r.last_signal
        )
        INSERT INTO {schema}.signal (seq, number, at, is_unread, id, name, payload)
        SELECT p_seq, n.last_signal, p_now, true, '', '', '' FROM numbered n ON CONFLICT DO NOTHING;
    END IF;
    RETURN true;
END $$;

-- name: read_run
-- Read the steps of a durable run, then its unread signals.
-- Inputs: the id of the job; the numbers of the last step and of the last signal that were read; the maximum number of steps and of
--   signals; after how many bytes of both the page ends
-- Result: one row for each step or signal: number, when it was stored, name (NULL: a step), body. Further ones follow if one more than
--   the maximum is there, or if the bytes are exceeded. A row with a NULL number: there are none. No row: there is no such job.
-- It keeps its plans: planning a read of all partitions of `finished_job` takes longer than reading a run.
CREATE OR REPLACE FUNCTION {schema}.read_run_1(p_id bytea, p_step int8, p_signal int8, p_limit int4, p_bytes int8)
RETURNS TABLE (number int8, at int8, name text, body bytea)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET jit TO off SET plan_cache_mode TO force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    run_seq int8 := (SELECT j.seq FROM {schema}.job j WHERE j.id = p_id);
BEGIN
    IF run_seq IS NULL THEN
        run_seq := (
            SELECT d.seq FROM {schema}.finished_job d, {schema}.horizon h
            WHERE d.id = p_id AND h.what = 'completed' AND (d.finished_at, d.seq) > (h.finished_at, h.seq)
            ORDER BY d.seq DESC LIMIT 1
        );
    END IF;
    RETURN QUERY SELECT r.number, r.at, r.name, r.body
    FROM (SELECT run_seq AS seq WHERE run_seq IS NOT NULL) k LEFT JOIN LATERAL (
        SELECT u.*, sum(octet_length(u.body)) OVER (ORDER BY u.name IS NOT NULL, u.number) - octet_length(u.body) AS bytes_before
        FROM (
            (
                SELECT s.number, s.at, CAST(NULL AS text) AS name, s.body FROM {schema}.step s
                WHERE s.seq = k.seq AND s.number > p_step ORDER BY s.number LIMIT p_limit::int8 + 1
            )
            UNION ALL
            (
                SELECT s.number, s.at, s.name, s.payload FROM {schema}.signal s
                WHERE s.seq = k.seq AND s.is_unread AND s.number > p_signal ORDER BY s.number LIMIT p_limit::int8 + 1
            )
        ) u
    ) r ON r.bytes_before <= p_bytes
    ORDER BY r.name IS NOT NULL, r.number;
END $$;

-- name: read_small_run
-- Read the steps and the unread signals of a durable run that come with its lease. `read_run_1` reads those of other runs.
-- Inputs: the seq of the job
-- Result: a JSON array of steps by number, then of signals by number: number, when it was stored, name (null: a step), body in
--   hexadecimal digits. NULL: the job has none, more than 100, or more than MAX_DELIVERED_RUN bytes (core/runs.py)
-- Atomic: a read. It reads no body of a larger run.
CREATE OR REPLACE FUNCTION {schema}.read_small_run_1(p_seq int8) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.run r WHERE r.seq = p_seq) THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT json_agg(json_build_array(r.number, r.at, r.name, encode(r.body, 'hex')))
        FROM (
            SELECT u.*, count(*) OVER () AS entries, sum(octet_length(u.body)) OVER () AS bytes FROM (
                (
                    SELECT s.number, s.at, CAST(NULL AS text) AS name, s.body FROM {schema}.step s
                    WHERE s.seq = p_seq ORDER BY s.number LIMIT 101
                )
                UNION ALL
                (
                    SELECT s.number, s.at, s.name, s.payload FROM {schema}.signal s
                    WHERE s.seq = p_seq AND s.is_unread ORDER BY s.number LIMIT 101
                )
            ) u ORDER BY u.name IS NOT NULL, u.number
        ) r WHERE r.entries <= 100 AND r.bytes <= 4096
    );
END $$;

-- name: forget_runs
-- Let the next `prune_runs_1` remove the steps and signals of jobs whose records are deleted.
-- Inputs: the seqs of the jobs
CREATE OR REPLACE FUNCTION {schema}.forget_runs_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
BEGIN
    IF p_seqs <> '{}' AND EXISTS (SELECT FROM {schema}.run) THEN
        UPDATE {schema}.run r SET checked_at = {schema}.get_lowest_time_1() WHERE r.seq = ANY (p_seqs);
    END IF;
END $$;

-- name: prune_runs
-- Remove the steps and signals of jobs whose records were removed.
-- Inputs: the time; how many runs it looks at, and a tenth of the number of steps that it removes at most
-- Locks: rows of `run`; those that another transaction has locked are skipped
-- A run is looked at when the horizon has passed the time at which its record was there.
CREATE OR REPLACE FUNCTION {schema}.prune_runs_1(p_now int8, p_limit int4) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    available int8 := 10 * p_limit::int8;
    removed int8;
    kept_at int8;
    candidate record;
BEGIN
    FOR candidate IN
        SELECT r.seq, r.id FROM {schema}.run r
        WHERE r.checked_at <= (SELECT h.finished_at FROM {schema}.horizon h WHERE h.what = 'completed')
        ORDER BY r.checked_at LIMIT p_limit FOR UPDATE OF r SKIP LOCKED
    LOOP
        SELECT p_now INTO kept_at FROM {schema}.job j WHERE j.seq = candidate.seq;
        IF NOT FOUND THEN
            SELECT d.finished_at INTO kept_at FROM {schema}.finished_job d, {schema}.horizon h
            WHERE d.id = candidate.id AND d.seq = candidate.seq AND h.what = 'completed'
                AND (d.finished_at, d.seq) > (h.finished_at, h.seq);
        END IF;
        IF FOUND THEN
            UPDATE {schema}.run r SET checked_at = kept_at WHERE r.seq = candidate.seq;
            CONTINUE;
        END IF;
        EXIT WHEN available <= 0;
        DELETE FROM {schema}.step s WHERE s.ctid = ANY (ARRAY(
            SELECT o.ctid FROM {schema}.step o WHERE o.seq = candidate.seq LIMIT available
        ));
        GET DIAGNOSTICS removed = ROW_COUNT;
        available := available - removed;
        DELETE FROM {schema}.signal s WHERE s.ctid = ANY (ARRAY(
            SELECT o.ctid FROM {schema}.signal o WHERE o.seq = candidate.seq LIMIT available
        ));
        GET DIAGNOSTICS removed = ROW_COUNT;
        available := available - removed;
        IF available > 0 THEN
            DELETE FROM {schema}.run r WHERE r.seq = candidate.seq;
        END IF;
    END LOOP;
END $$;
