-- Maintenance: cancel, make due, pause, replay, delete; the ticks of schedules; records, which a step can write together with jobs.
--
-- Atomic: one transaction each. The transaction that deletes the row of a job acts on that job, so two calls never
-- cancel, replay or delete the same job. A tick is a compare-and-swap of the last tick under the row lock of its record,
-- whose body is the JSON object of `encode_schedule` (core/schedules.py).

-- name: cancel_job
-- Cancel a waiting job, or request that the worker of a running job cancels it.
-- Inputs: the time or NULL; the id; the states in which the job is cancelled (NULL: each); the reason. With a reason, a job that waits
--   keeps its payload.
--   If the answer is `cancelled`, the caller continues with `continue_flows_1`. A durable run that a worker has to end is not cancelled:
--   it gets a signal, and is resumed if it is suspended.
-- Result: cancelled, requested, finished, missing or skipped (it is in another state); the queue to notify, or `@` and the id of the session (NULL: none)
-- Locks: the unique key of the job; its row in `ready` or `scheduled`
-- Atomic: each attempt is one step. An attempt fails only if the job changes its state at that moment, so the loop ends.
CREATE OR REPLACE FUNCTION {schema}.cancel_job_1(
    p_now int8, p_id bytea, p_states text[], p_reason text DEFAULT NULL, OUT answer text, OUT to_notify text
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    body record;
    attempts {schema}.attempt_state;
    lane int4;
    holder int4;
    may_wait bool;  -- whether the job is cancelled if it waits
    was_removed bool;
    was_suspended bool := false;
    unparked bool := false;
    resumed int4[];
BEGIN
    LOOP
        SELECT j.seq, j.lane, j.due, j.unique_key, j.flow INTO body FROM {schema}.job j WHERE j.id = p_id;
        IF NOT FOUND THEN
            answer := CASE WHEN {schema}.find_digest_1(p_id, {schema}.get_lowest_time_1(), true) IS NULL THEN 'missing'
                ELSE 'finished' END;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = body.seq) THEN
            answer := 'finished';
            RETURN;
        END IF;
        IF body.unique_key IS NOT NULL THEN  -- an enqueue locks the key before the job, too
            PERFORM FROM {schema}.lane a, {schema}.unique_key u
            WHERE a.id = body.lane AND u.name = a.name AND u.key = body.unique_key FOR UPDATE OF u;
            SELECT j.seq, j.lane, j.due, j.unique_key, j.flow INTO body FROM {schema}.job j WHERE j.id = p_id;
            CONTINUE WHEN NOT FOUND;
        END IF;
        SELECT * INTO attempts FROM {schema}.attempt_state p WHERE p.seq = body.seq;
        IF NOT FOUND THEN
            attempts := ROW(body.seq, body.due, NULL, 0, 0, 0, 0, NULL);
        END IF;
        may_wait := p_states IS NULL
            OR {schema}.get_state_1('waiting', attempts.failures, attempts.due, now) = ANY (p_states);
        was_removed := false;
        IF may_wait THEN
            was_removed := {schema}.remove_waiting_1(body.lane, attempts.due, body.seq);
            IF was_removed THEN
                unparked := {schema}.pass_turns_1(now, body.seq, body.lane);
            ELSE
                DELETE FROM {schema}.parked p WHERE p.seq = body.seq;
                was_removed := FOUND;
            END IF;
        END IF;
        IF NOT was_removed AND EXISTS (SELECT FROM {schema}.dependent d WHERE d.seq = body.seq) THEN
            IF p_states IS NOT NULL AND 'suspended' <> ALL (p_states) THEN
                answer := 'skipped';
                RETURN;
            END IF;
            PERFORM FROM {schema}.dependent d WHERE d.seq = body.seq AND d.cancelled_at IS NULL FOR UPDATE;
            CONTINUE WHEN NOT FOUND;
            IF {schema}.send_cancel_1(now, body.seq) THEN
                answer := 'requested';
                resumed := {schema}.resume_runs_1(now, ARRAY[body.seq]);
                SELECT a.queue INTO to_notify FROM {schema}.lane a WHERE a.id = resumed[1];
                RETURN;
            END IF;
            DELETE FROM {schema}.dependent d WHERE d.seq = body.seq;
            DELETE FROM {schema}.condition c WHERE c.waiter = body.seq AND (p_reason IS NULL OR c.needs <> '');
            was_removed := true;
            was_suspended := true;
        ELSIF was_removed AND {schema}.send_cancel_1(now, body.seq) THEN  -- it keeps its place
            SELECT p.* INTO attempts FROM {schema}.attempt_state p WHERE p.seq = body.seq;
            PERFORM {schema}.make_waiting_1(now, body.seq, attempts.due, body.lane,
                CAST(CASE WHEN attempts.failures > 0 THEN 2 ELSE 1 END AS int2));
            answer := 'requested';
            SELECT a.queue INTO to_notify FROM {schema}.lane a WHERE a.id = body.lane AND attempts.due <= now;
            RETURN;
        END IF;
        IF was_removed THEN
            answer := 'cancelled';
            IF was_suspended AND body.flow IS NULL THEN  -- of a member, `finish_job_1` notes it
                PERFORM {schema}.note_changes_1(ARRAY[p_id], ARRAY[NULL::int8], 'failed', 'cancelled');
            END IF;
            lane := {schema}.finish_job_1(now, attempts, NULL, 3::int2, p_reason, NULL, p_reason IS NOT NULL);
            SELECT a.queue INTO to_notify FROM {schema}.lane a WHERE a.id = CASE WHEN unparked THEN body.lane ELSE lane END;
            RETURN;
        END IF;
        IF p_states IS NULL OR 'processing' = ANY (p_states) THEN
            UPDATE {schema}.lease l SET cancel_requested = true
            WHERE l.session = ANY (ARRAY(SELECT s.number FROM {schema}.session s WHERE NOT s.is_drained))
                AND l.seq = body.seq
            RETURNING l.session INTO holder;
            IF FOUND THEN
                answer := 'requested';
                SELECT '@' || s.id INTO to_notify FROM {schema}.session s WHERE s.number = holder;
                RETURN;
            END IF;
        ELSIF EXISTS (
            SELECT FROM {schema}.lease l
            WHERE l.session = ANY (ARRAY(SELECT s.number FROM {schema}.session s WHERE NOT s.is_drained))
                AND l.seq = body.seq
        ) THEN
            may_wait := false;
        END IF;
        IF NOT may_wait THEN
            answer := 'skipped';
            RETURN;
        END IF;
    END LOOP;
END $$;

-- name: make_due
-- Make jobs due that wait for a later time.
-- Inputs: the time or NULL; the ids; the states in which they are made due
-- Result: the ids of the jobs that did, and their queues
-- Locks: the rows of `scheduled` that it deletes, and the turns of tenants, in the order of lanes (as `enqueue_1`) and ids
-- Atomic: one transaction. The transaction that deletes the row in `scheduled` makes the job due.
CREATE OR REPLACE FUNCTION {schema}.make_due_1(p_now int8, p_ids bytea[], p_states text[]) RETURNS TABLE (id bytea, queue text)
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    waiting record;
    moved {schema}.scheduled;
BEGIN
    FOR waiting IN
        SELECT j.id, j.seq, coalesce(t.due, j.due) AS due
        FROM (SELECT DISTINCT u.wanted FROM unnest(p_ids) u (wanted)) w
        JOIN {schema}.job j ON j.id = w.wanted LEFT JOIN {schema}.attempt_state t ON t.seq = j.seq
        WHERE coalesce(t.due, j.due) > now
            AND {schema}.get_state_1('waiting', coalesce(t.failures, 0), coalesce(t.due, j.due), now) = ANY (p_states)
        ORDER BY j.lane, j.id
    LOOP
        DELETE FROM {schema}.scheduled s WHERE s.due = waiting.due AND s.seq = waiting.seq RETURNING s.* INTO moved;
        CONTINUE WHEN NOT FOUND;
        UPDATE {schema}.job j SET due = now WHERE j.seq = moved.seq;
        UPDATE {schema}.attempt_state t SET due = now WHERE t.seq = moved.seq;
        PERFORM {schema}.make_waiting_1(now, moved.seq, now, moved.lane, moved.attempt_status);
        id := waiting.id;
        SELECT a.queue INTO queue FROM {schema}.lane a WHERE a.id = moved.lane;
        RETURN NEXT;
    END LOOP;
END $$;

-- name: pause_queue
-- Pause or resume a queue.
-- Inputs: the time or NULL; the queue; whether to pause it; who pauses it; the reason; when the pause ends (NULL: when the
--   queue is resumed)
-- Locks: the table `paused_queue` in EXCLUSIVE. Exchanges hold it in ROW SHARE while they read it. So after this function
--   returns, no exchange leases a job of the queue.
-- Atomic: one statement after the lock
CREATE OR REPLACE FUNCTION {schema}.pause_queue_1(
    p_now int8, p_queue text, p_paused bool, p_by text, p_reason text, p_ends_at int8
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
BEGIN
    LOCK TABLE {schema}.paused_queue IN EXCLUSIVE MODE;
    IF p_paused THEN
        PERFORM {schema}.note_feature_1('pauses');
        INSERT INTO {schema}.paused_queue AS q (queue, since, ends_at, paused_by, reason)
        VALUES (p_queue, now, p_ends_at, p_by, p_reason)
        ON CONFLICT (queue) DO UPDATE SET ends_at = excluded.ends_at, paused_by = excluded.paused_by,
            reason = excluded.reason, since = CASE WHEN q.ends_at <= now THEN excluded.since ELSE q.since END;
    ELSE
        DELETE FROM {schema}.paused_queue WHERE queue = p_queue;
    END IF;
END $$;

-- name: replay_jobs
-- Make failed jobs pending again. The caller continues with `continue_flows_1`.
-- Inputs: the time or NULL; the ids
-- Result: one row for each job: id, whether the job is pending now, queue
-- Locks: rows of `dead_letter`, where rows that another transaction has locked are skipped; the unique keys of these jobs; then, of
--   jobs without such keys, the turns of tenants in the order of their lanes, as `enqueue_1`
-- Atomic: one transaction. The transaction that deletes the row in `dead_letter` replays the job.
CREATE OR REPLACE FUNCTION {schema}.replay_jobs_1(p_now int8, p_ids bytea[])
RETURNS TABLE (id bytea, replayed bool, queue text)
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    dead_job record;
    seqs int8[];
    lanes int4[];
    waiting record;
BEGIN
    FOR dead_job IN
        SELECT j.seq, j.id, j.lane, j.unique_key, j.flow, a.queue, a.name,
            CAST({schema}.get_option_1(j.options, 'unique_for') AS float8) AS span,
            CAST({schema}.get_option_1(j.options, 'unique_while') AS json) AS states
        FROM {schema}.dead_letter d JOIN {schema}.job j ON j.seq = d.seq JOIN {schema}.lane a ON a.id = j.lane
        WHERE j.id = ANY (p_ids) ORDER BY d.seq DESC FOR UPDATE OF d SKIP LOCKED
    LOOP
        id := dead_job.id;
        queue := dead_job.queue;
        replayed := dead_job.unique_key IS NULL
            OR {schema}.take_unique_key_1(now, dead_job.name, dead_job.unique_key, dead_job.seq, dead_job.id,
                dead_job.span, {schema}.decode_text_array_1(dead_job.states));
        IF replayed THEN
            DELETE FROM {schema}.dead_letter d WHERE d.seq = dead_job.seq;
            UPDATE {schema}.attempt_state p SET due = now, failures = 0, lost = 0 WHERE p.seq = dead_job.seq;
            IF dead_job.flow IS NOT NULL THEN
                PERFORM {schema}.note_changes_1(ARRAY[dead_job.id], ARRAY[dead_job.flow], 'reopened', 'failed');
            END IF;
            IF dead_job.unique_key IS NULL THEN
                seqs := seqs || dead_job.seq;
                lanes := lanes || dead_job.lane;
            ELSE  -- a further job of the key looks for this one
                PERFORM {schema}.make_waiting_1(now, dead_job.seq, now, dead_job.lane, 1::int2);
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    FOR waiting IN SELECT * FROM unnest(seqs, lanes) AS w (seq, lane) ORDER BY w.lane LOOP
        PERFORM {schema}.make_waiting_1(now, waiting.seq, now, waiting.lane, 1::int2);
    END LOOP;
END $$;

-- name: take_unique_key
-- Assign a unique key to a job, unless another job holds it.
-- Inputs: the time; name, key, seq and id of the job; for how many seconds it holds the key (NULL: until it is finished);
--   the states in which it holds the key (NULL: each)
-- Result: whether the job holds the key now
CREATE OR REPLACE FUNCTION {schema}.take_unique_key_1(
    p_now int8, p_name text, p_key text, p_seq int8, p_id bytea, p_span float8, p_states text[]
) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.unique_key AS u (name, key, seq, valid_until, id, states)
    VALUES (p_name, p_key, p_seq, p_now + CAST(round(CAST(p_span * 1000000 AS numeric)) AS int8), p_id, p_states)
    ON CONFLICT (name, key) DO UPDATE SET seq = excluded.seq, id = excluded.id, states = excluded.states,
        valid_until = CASE WHEN {schema}.holds_key_1(p_now, u) THEN u.valid_until ELSE excluded.valid_until END
    WHERE u.id = excluded.id OR NOT {schema}.holds_key_1(p_now, u);
    RETURN FOUND;
END $$;

-- name: delete_jobs
-- Delete finished jobs, except those whose flow runs.
-- Inputs: the time or NULL; the ids; the states in which they are deleted
-- Result: the ids of the deleted jobs
-- Locks: advisory lock 7044 and the row of the horizon, both shared, so that `prune_jobs_1` does not remove the same
--   jobs; the rows that it deletes
-- Atomic: one transaction. A job that another transaction deleted or replayed in the meantime is skipped.
CREATE OR REPLACE FUNCTION {schema}.delete_jobs_1(p_now int8, p_ids bytea[], p_states text[]) RETURNS SETOF bytea
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    finished record;
    ended {schema}.finished_job;
    job_id bytea;
    any_runs bool := {schema}.find_running_flow_1() IS NOT NULL;
    deleted int8[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    PERFORM FROM {schema}.horizon WHERE what = 'completed' FOR SHARE;
    FOR finished IN
        SELECT * FROM {schema}.find_jobs_1(now, p_states, NULL, NULL, NULL, p_ids, NULL,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 9223372036854775807, cardinality(p_ids), 2147483647) f
        WHERE f.id IS NOT NULL
    LOOP
        CONTINUE WHEN any_runs AND EXISTS (
            SELECT FROM {schema}.flow f WHERE f.number = {schema}.find_root_1('job', finished.id) AND f.finished_at IS NULL
        );
        IF finished.state = 'failed' THEN
            DELETE FROM {schema}.dead_letter d WHERE d.seq = finished.seq;
            CONTINUE WHEN NOT FOUND;
            DELETE FROM {schema}.job j WHERE j.seq = finished.seq RETURNING j.id INTO job_id;
            PERFORM {schema}.drop_attempt_state_1(ARRAY[finished.seq], 3::int2);
        ELSE
            DELETE FROM {schema}.finished_job d WHERE d.id = finished.id AND d.seq = finished.seq
            RETURNING d.* INTO ended;
            CONTINUE WHEN NOT FOUND;
            DELETE FROM {schema}.result r WHERE r.seq = finished.seq;
            PERFORM {schema}.drop_dependents_1(ARRAY[finished.seq]);
            PERFORM {schema}.uncount_finished_1(ended.finished_at, ended.lane, ended.state);
            job_id := ended.id;
        END IF;
        deleted := deleted || finished.seq;
        RETURN NEXT job_id;
    END LOOP;
    PERFORM {schema}.forget_runs_1(deleted);
END $$;

-- name: take_enqueue_counts
-- Delete counts that `enqueue_in_caller` stored, oldest first.
-- Inputs: the time or NULL; the minimum age of a count in microseconds; the maximum number of rows
-- Result: queue, name, number of jobs
-- Locks: the rows. Rows that another call takes are skipped. Rows of open transactions are invisible.
-- Atomic: one statement. The commit is asynchronous, so after a crash of the server, a later call may return the latest counts
--   again.
CREATE OR REPLACE FUNCTION {schema}.take_enqueue_counts_1(p_now int8, p_min_age int8, p_limit int4)
RETURNS TABLE (queue text, name text, count int8)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    latest int8 := ({schema}.get_write_time_1(p_now) - p_min_age) / 1000000;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    RETURN QUERY DELETE FROM {schema}.statistics t WHERE t.ctid = ANY (ARRAY(
        SELECT s.ctid FROM {schema}.statistics s WHERE s.step = 0 AND s.start <= latest
        ORDER BY s.start LIMIT p_limit FOR UPDATE SKIP LOCKED
    )) RETURNING t.queue, t.name, CAST(CAST(t.counters AS json) ->> 'enqueued' AS int8);
END $$;

-- name: put_statistics
-- Store the counters of one process. A row replaces what the process stored for the same interval, queue and name.
-- Inputs: the process; arrays of the same length without duplicates: lengths and begins of the intervals, queues, names,
--   counters (JSON)
-- Locks: the rows, in the order of their keys
-- Atomic: one statement. The commit is asynchronous: a server that crashes may lose the latest counters.
CREATE OR REPLACE FUNCTION {schema}.put_statistics_1(
    p_source text, p_steps int4[], p_starts int8[], p_queues text[], p_names text[], p_counters text[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO {schema}.statistics (step, start, queue, name, source, counters)
    SELECT g.step, g.start, g.queue, g.name, p_source, g.counters
    FROM unnest(p_steps, p_starts, p_queues, p_names, p_counters) AS g (step, start, queue, name, counters)
    ORDER BY g.step, g.start, g.queue COLLATE "C", g.name COLLATE "C"
    ON CONFLICT (step, start, queue, name, source) DO UPDATE SET counters = excluded.counters;
END $$;

-- name: fire_schedule
-- Decide one tick of a schedule: compare and swap its last tick, and store its job.
-- Inputs: the time or NULL; the name; the last tick that the caller expects (NULL: none) and the tick, as text; the overlap rule;
--   then one job with the arguments of `enqueue_1`
-- Result: fired, skipped, moved, paused or missing; the id of the job of this tick; what the cancel of the previous job
--   notifies: as in `cancel_job_1`, and the queues of jobs that waited for it
-- Locks: the schedule; then as `cancel_job_1`, `enqueue_1` and `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.fire_schedule_1(
    p_now int8, p_name text, p_expected text, p_tick text, p_overlap text, p_queues text[],
    p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[], p_digests bytea[],
    p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[], p_keys text[],
    p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8, OUT outcome text, OUT job_id bytea, OUT cancel_to_notify text[]
) LANGUAGE plpgsql AS $$
DECLARE
    kept json;
    last_job text;
    previous record;
    stored record;
BEGIN
    SELECT CAST(r.body AS json) INTO kept FROM {schema}.record r WHERE r.kind = 'schedule' AND r.id = p_name FOR UPDATE;
    outcome := CASE WHEN NOT FOUND THEN 'missing' WHEN kept -> 'paused' #>> '{}' = 'true' THEN 'paused'
        WHEN kept -> 'last_tick' #>> '{}' IS DISTINCT FROM p_expected THEN 'moved' END;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    outcome := 'skipped';
    last_job := kept -> 'last_job' #>> '{}';
    SELECT * INTO previous FROM {schema}.allows_next_job_1(p_now, {schema}.encode_id_1(last_job), p_overlap);
    IF previous.allowed THEN
        SELECT * INTO stored FROM {schema}.enqueue_1(p_now, p_queues, p_names, p_ranks, p_lanes, p_ids,
            p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_spans, p_states, p_on_duplicate, p_max_waits, p_since);
        IF coalesce(stored.codes, 'c') IN ('c', 'e', 'p') THEN
            outcome := 'fired';
            job_id := coalesce(stored.holders[1], p_ids[1]);
        END IF;
    END IF;
    cancel_to_notify := array_remove(ARRAY[previous.to_notify], NULL) || {schema}.continue_flows_1(p_now);
    UPDATE {schema}.record r SET version = r.version + 1, body = CAST(json_build_object(
        'spec', kept -> 'spec', 'owner', kept -> 'owner', 'paused', false, 'last_tick', p_tick,
        'last_job', coalesce({schema}.decode_id_1(job_id), last_job)
    ) AS text) WHERE r.kind = 'schedule' AND r.id = p_name;
END $$;

-- name: allows_next_job
-- Decide whether the previous job of a schedule allows the next one.
-- Inputs: the time or NULL; the id of the previous job (NULL: none); the overlap rule
-- Result: whether the next job is allowed; what the cancel of the previous job notifies, as in `cancel_job_1`
-- Locks: as `cancel_job_1` if the rule is `cancel_previous`
CREATE OR REPLACE FUNCTION {schema}.allows_next_job_1(p_now int8, p_id bytea, p_overlap text, OUT allowed bool, OUT to_notify text)
LANGUAGE plpgsql AS $$
DECLARE
    previous record;
BEGIN
    SELECT r.status, r.failures INTO previous FROM {schema}.job_record r WHERE r.id = p_id AND r.status IN ('waiting', 'suspended', 'processing');
    allowed := NOT FOUND OR p_overlap = 'allow' OR p_overlap = 'cancel_previous'
        OR p_overlap = 'queue_one' AND (previous.status = 'processing' OR previous.failures > 0);
    IF FOUND AND p_overlap = 'cancel_previous' THEN
        SELECT c.to_notify INTO to_notify FROM {schema}.cancel_job_1(p_now, p_id, NULL) c;
    END IF;
END $$;

-- name: put_record
-- Add a record, or replace it if it has the given version. The oldest ones of its kind beyond a number are deleted.
-- Inputs: the time or NULL; the kind; the id; the version (0: there is none; NULL: any); when it is due (NULL: never); the
--   body (JSON); the number of records to keep (NULL: all)
-- Result: stored, conflict or full; the record as it is kept. After `full`, the oldest record, which has a due time
-- Locks: the row of the record; for a new record advisory lock 7045, so that positions have no gaps and the surplus is
--   known without counting
CREATE OR REPLACE FUNCTION {schema}.put_record_1(
    p_now int8, p_kind text, p_id text, p_version int8, p_due int8, p_body text, p_keep int4,
    OUT outcome text, OUT kept {schema}.record
) LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
    newest int8;
BEGIN
    outcome := 'stored';
    UPDATE {schema}.record r SET version = r.version + 1, due = p_due, body = p_body
    WHERE r.kind = p_kind AND r.id = p_id AND (p_version IS NULL OR r.version = p_version) RETURNING r.* INTO kept;
    IF FOUND THEN
        RETURN;
    END IF;
    IF p_version IS NULL OR p_version = 0 THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.put_record_1', 7045));
    END IF;
    SELECT r.* INTO kept FROM {schema}.record r WHERE r.kind = p_kind AND r.id = p_id FOR UPDATE;
    IF p_version <> 0 OR FOUND AND p_version = 0 THEN
        outcome := 'conflict';
        RETURN;
    ELSIF FOUND THEN  -- another call added it before this one had the lock
        UPDATE {schema}.record r SET version = r.version + 1, due = p_due, body = p_body
        WHERE r.kind = p_kind AND r.id = p_id RETURNING r.* INTO kept;
        RETURN;
    END IF;
    SELECT r.position INTO newest FROM {schema}.record r WHERE r.kind = p_kind ORDER BY r.position DESC LIMIT 1;
    newest := coalesce(newest, 0) + 1;
    SELECT r.* INTO kept FROM {schema}.record r
    WHERE r.kind = p_kind AND r.due IS NOT NULL AND r.position <= newest - p_keep ORDER BY r.position LIMIT 1 FOR UPDATE;
    IF FOUND THEN
        outcome := 'full';
        RETURN;
    END IF;
    DELETE FROM {schema}.record r WHERE r.kind = p_kind AND r.position <= newest - p_keep;
    INSERT INTO {schema}.record (kind, position, id, version, created_at, due, body)
    SELECT p_kind, newest, p_id, t.now, t.now, p_due, p_body FROM {schema}.get_write_time_1(p_now) t (now) RETURNING * INTO kept;
END $$;

-- name: change_jobs
-- Replay, make due, cancel or delete jobs by id.
-- Inputs: the time; the action: replay, run_now, cancel or delete; the ids; the states in which jobs are changed, of those
--   that the action can change
-- Result: the ids of the jobs that were changed; of those whose unique key another job holds; what to notify, as in
--   `cancel_job_1`
-- Locks: except for a deletion the share classes of the tenants' queues, so that an exchange, which changes the same turns in
--   another order, does not wait for it; durable runs that are cancelled; then as `replay_jobs_1`, `make_due_1`, `delete_jobs_1` or `cancel_job_1` for each job, by lane;
--   then as `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.change_jobs_1(
    p_now int8, p_action text, p_ids bytea[], p_states text[], OUT changed bytea[], OUT held bytea[], OUT to_notify text[]
) LANGUAGE plpgsql AS $$
BEGIN
    IF p_action <> 'delete' AND EXISTS (SELECT FROM {schema}.share_class) THEN
        PERFORM FROM {schema}.share_class f WHERE f.queue IN (
            SELECT a.queue FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane WHERE j.id = ANY (p_ids)
        ) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    END IF;
    IF p_action = 'replay' THEN
        SELECT array_agg(r.id) FILTER (WHERE r.replayed), array_agg(r.id) FILTER (WHERE NOT r.replayed),
            array_agg(DISTINCT r.queue) FILTER (WHERE r.replayed)
        INTO changed, held, to_notify FROM {schema}.replay_jobs_1(p_now, p_ids) r
        WHERE 'failed' = ANY (p_states);
    ELSIF p_action = 'run_now' THEN
        SELECT array_agg(d.id), array_agg(DISTINCT d.queue) INTO changed, to_notify
        FROM {schema}.make_due_1(p_now, p_ids, p_states) d;
    ELSIF p_action = 'delete' THEN
        SELECT array_agg(d.id) INTO changed FROM {schema}.delete_jobs_1(p_now, p_ids, p_states) d (id);
    ELSE
        PERFORM {schema}.lock_cancelled_runs_1(ARRAY(SELECT j.seq FROM {schema}.job j WHERE j.id = ANY (p_ids)));
        SELECT array_agg(i.id) FILTER (WHERE c.answer IN ('cancelled', 'requested')),
            array_agg(DISTINCT c.to_notify) FILTER (WHERE c.to_notify IS NOT NULL)
        INTO changed, to_notify
        FROM (
            SELECT i.id FROM unnest(p_ids) AS i (id) LEFT JOIN {schema}.job j ON j.id = i.id ORDER BY j.lane OFFSET 0
        ) i CROSS JOIN LATERAL {schema}.cancel_job_1(p_now, i.id, p_states) c;
    END IF;
    changed := coalesce(changed, ARRAY[]::bytea[]);
    held := coalesce(held, ARRAY[]::bytea[]);
    to_notify := coalesce(to_notify, ARRAY[]::text[]) || {schema}.continue_flows_1(p_now);
END $$;

-- name: change_jobs_and_record
-- Change jobs as `change_jobs_1` does, and write a record if it has the given version.
-- Inputs: the time or NULL; the action; the ids; the states, as for `change_jobs_1`; kind, id and version of the record; when it is due (NULL: never); how many
--   seconds each changed job adds; its body (JSON)
-- Result: as `change_jobs_1`; the record, or NULL if it has another version: then nothing was changed
-- Locks: the row of the record; then as `change_jobs_1`
-- Atomic: one transaction. If a caller's transaction has locked a job or a key, the step waits at most 200 ms, and is then
--   undone. It must not wait longer, because exchanges wait for its locks.
CREATE OR REPLACE FUNCTION {schema}.change_jobs_and_record_1(
    p_now int8, p_action text, p_ids bytea[], p_states text[], p_kind text, p_id text, p_version int8, p_due int8, p_pause float8,
    p_body text, OUT changed bytea[], OUT held bytea[], OUT to_notify text[], OUT kept {schema}.record
) LANGUAGE plpgsql
SET lock_timeout TO '200ms' AS $$
BEGIN
    changed := ARRAY[]::bytea[];
    held := changed;
    to_notify := ARRAY[]::text[];
    PERFORM FROM {schema}.record r WHERE r.kind = p_kind AND r.id = p_id AND r.version = p_version FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF cardinality(p_ids) > 0 THEN
        SELECT c.changed, c.held, c.to_notify INTO changed, held, to_notify
        FROM {schema}.change_jobs_1({schema}.get_write_time_1(p_now), p_action, p_ids, p_states) c;
    END IF;
    UPDATE {schema}.record r SET
        version = r.version + 1, body = p_body, changed = r.changed + cardinality(change_jobs_and_record_1.changed),
        held = r.held + cardinality(change_jobs_and_record_1.held),
        due = p_due + CAST(floor(cardinality(change_jobs_and_record_1.changed) * p_pause * 1000000 + 0.5) AS int8)
    WHERE r.kind = p_kind AND r.id = p_id RETURNING r.* INTO kept;
END $$;

-- name: encode_id
-- Return the id of a job as it is stored: a UUID takes 17 bytes.
-- Inputs: the text of the id
-- Result: the bytes
CREATE OR REPLACE FUNCTION {schema}.encode_id_1(p_id text) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        THEN '\x00'::bytea || decode(replace(p_id, '-', ''), 'hex') ELSE convert_to(p_id, 'UTF8') END
$$;

-- name: decode_id
-- Return the text of the id of a job.
-- Inputs: the bytes
-- Result: the text
CREATE OR REPLACE FUNCTION {schema}.decode_id_1(p_id bytea) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN get_byte(p_id, 0) = 0 THEN CAST(CAST(encode(substr(p_id, 2), 'hex') AS uuid) AS text)
        ELSE convert_from(p_id, 'UTF8') END
$$;
