-- Records: add and replace them, and write one in the step that changes jobs.

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
--   another order, does not wait for it; then as `replay_jobs_1`, `make_due_1`, `delete_jobs_1` or `cancel_job_1` for each job, by lane
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
        SELECT array_agg(i.id) FILTER (WHERE c.answer IN ('cancelled', 'requested')),
            array_agg(DISTINCT c.to_notify) FILTER (WHERE c.to_notify IS NOT NULL)
        INTO changed, to_notify
        FROM (
            SELECT i.id FROM unnest(p_ids) AS i (id) LEFT JOIN {schema}.job j ON j.id = i.id ORDER BY j.lane OFFSET 0
        ) i CROSS JOIN LATERAL {schema}.cancel_job_1(p_now, i.id, p_states) c;
    END IF;
    changed := coalesce(changed, ARRAY[]::bytea[]);
    held := coalesce(held, ARRAY[]::bytea[]);
    to_notify := coalesce(to_notify, ARRAY[]::text[]);
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
