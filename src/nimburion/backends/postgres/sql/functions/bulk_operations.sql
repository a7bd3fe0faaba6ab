-- Bulk operations: start, claim and advance them.
--
-- A step locks the row of its operation first, and changes its jobs and the progress in one transaction. So a step is
-- written completely, once, and only under the latest fence.

-- name: start_bulk_operation
-- Add a bulk operation, unless one with this id is kept. The oldest one beyond the maximum is deleted.
-- Inputs: the time or NULL; the id; what is started (JSON); the number of operations to keep
-- Result: NULL, or the id of the oldest operation, if it still runs: then nothing was added
-- Locks: advisory lock 7046, so that positions have no gaps and the oldest is known without counting
CREATE OR REPLACE FUNCTION {schema}.start_bulk_operation_1(p_now int8, p_id text, p_body text, p_most int4) RETURNS text
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    newest int8;
    oldest record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.start_bulk_operation_1', 7046));
    IF EXISTS (SELECT FROM {schema}.bulk_operation b WHERE b.id = p_id) THEN
        RETURN NULL;
    END IF;
    SELECT b.position INTO newest FROM {schema}.bulk_operation b ORDER BY b.position DESC LIMIT 1;
    newest := coalesce(newest, 0) + 1;
    SELECT b.position, b.id, b.state INTO oldest FROM {schema}.bulk_operation b
    WHERE b.position <= newest - p_most ORDER BY b.position LIMIT 1 FOR UPDATE;
    IF oldest.state = 'running' THEN
        RETURN oldest.id;
    END IF;
    DELETE FROM {schema}.bulk_operation b WHERE b.position = oldest.position;
    INSERT INTO {schema}.bulk_operation (position, id, body, started_at, due) VALUES (newest, p_id, p_body, now, now);
    RETURN NULL;
END $$;

-- name: claim_bulk_operation
-- Claim the next step of the running operation that has been due for the longest time.
-- Inputs: the time or NULL; for how many microseconds
-- Result: the operation, if a step is due; otherwise the microseconds until one is due (NULL: no operation runs)
-- Locks: the row of the operation; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.claim_bulk_operation_1(
    p_now int8, p_ttl int8, OUT operation {schema}.bulk_operation, OUT wait int8
) LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_read_time_1(p_now);
    claimed int8;
BEGIN
    SELECT b.position INTO claimed FROM {schema}.bulk_operation b
    WHERE b.state = 'running' AND b.due <= now AND coalesce(b.leased_until, now) <= now
    ORDER BY greatest(b.due, b.leased_until), b.position LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE {schema}.bulk_operation b SET fence = b.fence + 1, leased_until = now + p_ttl
        WHERE b.position = claimed RETURNING b.* INTO operation;
    ELSE
        SELECT min(greatest(b.due, b.leased_until, now)) - now INTO wait
        FROM {schema}.bulk_operation b WHERE b.state = 'running';
    END IF;
END $$;

-- name: advance_bulk_operation
-- Run a claimed step: change its jobs and record the progress.
-- Inputs: the time or NULL; the id of the operation; the fence of the claim; the ids of the jobs; where the next step
--   continues; whether all jobs were processed; the final state (NULL: it runs on); the error ('': as before)
-- Result: ok, lost or missing; what to notify, as in `cancel_job_1`; the operation
-- Locks: the row of the operation; then as `replay_jobs_1`, `delete_jobs_1` or `cancel_job_1` for each job
-- Atomic: one transaction. A repeat of the last step finds the claim ended and changes nothing. If a
--   caller's transaction has locked a job or a key, the step waits at most 200 ms, and is then undone. It must not wait longer,
--   because exchanges wait for its locks.
CREATE OR REPLACE FUNCTION {schema}.advance_bulk_operation_1(
    p_now int8, p_id text, p_fence int8, p_ids bytea[], p_continue_after text, p_exhausted bool, p_end text, p_error text,
    OUT outcome text, OUT to_notify text[], OUT operation {schema}.bulk_operation
) LANGUAGE plpgsql
SET lock_timeout TO '200ms' AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    action text;
    rate float8;
    changed int8 := 0;
    held int8 := 0;
BEGIN
    to_notify := ARRAY[]::text[];
    SELECT b.* INTO operation FROM {schema}.bulk_operation b WHERE b.id = p_id FOR UPDATE;
    outcome := CASE WHEN NOT FOUND THEN 'missing' WHEN operation.fence <> p_fence THEN 'lost' ELSE 'ok' END;
    IF outcome <> 'ok' OR operation.leased_until IS NULL THEN
        RETURN;
    END IF;
    action := CAST(operation.body AS json) ->> 'action';
    rate := CAST(CAST(operation.body AS json) ->> 'rate' AS float8);
    IF cardinality(p_ids) > 0 THEN
        SELECT c.changed, c.held, c.to_notify INTO changed, held, to_notify
        FROM {schema}.change_jobs_1(now, action, p_ids) c;
    END IF;
    UPDATE {schema}.bulk_operation b SET
        done = b.done + changed, failed = b.failed + held, skipped = b.skipped + cardinality(p_ids) - changed - held,
        continue_after = p_continue_after, exhausted = p_exhausted, leased_until = NULL,
        due = greatest(b.due, now - 1000000) + coalesce(CAST(floor(changed * 1000000 / rate + 0.5) AS int8), 0),
        state = coalesce(p_end, b.state), ended_at = CASE WHEN p_end IS NOT NULL THEN now END,
        error = coalesce(nullif(p_error, ''), b.error)
    WHERE b.position = operation.position RETURNING b.* INTO operation;
END $$;

-- name: change_jobs
-- Replay, make due, cancel or delete jobs by id.
-- Inputs: the time; the action: replay, run_now, cancel or delete; the ids
-- Result: the number of jobs that were changed; of those whose unique key another job holds; what to notify
-- Locks: except for a deletion the floors of the tenants' queues, so that an exchange, which changes the same turns in
--   another order, does not wait for it; then as `replay_jobs_1`, `make_due_1`, `delete_jobs_1` or `cancel_job_1` for each job, by lane
CREATE OR REPLACE FUNCTION {schema}.change_jobs_1(
    p_now int8, p_action text, p_ids bytea[], OUT changed int8, OUT held int8, OUT to_notify text[]
) LANGUAGE plpgsql AS $$
BEGIN
    IF p_action <> 'delete' AND EXISTS (SELECT FROM {schema}.tenant_floor) THEN
        PERFORM FROM {schema}.tenant_floor f WHERE f.queue IN (
            SELECT a.queue FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane WHERE j.id = ANY (p_ids)
        ) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    END IF;
    IF p_action = 'replay' THEN
        SELECT count(*) FILTER (WHERE r.replayed), count(*) FILTER (WHERE NOT r.replayed),
            coalesce(array_agg(DISTINCT r.queue) FILTER (WHERE r.replayed), ARRAY[]::text[])
        INTO changed, held, to_notify
        FROM {schema}.replay_jobs_1(p_now, NULL, NULL, NULL, NULL, p_ids, 9223372036854775807, cardinality(p_ids)) r;
    ELSIF p_action = 'run_now' THEN
        SELECT count(*), 0, coalesce(array_agg(DISTINCT d.queue), ARRAY[]::text[]) INTO changed, held, to_notify
        FROM {schema}.make_due_1(p_now, p_ids) d;
    ELSIF p_action = 'delete' THEN
        SELECT count(*), 0, ARRAY[]::text[] INTO changed, held, to_notify
        FROM {schema}.delete_jobs_1(p_now, ARRAY['completed', 'failed', 'cancelled'], NULL, NULL, NULL, p_ids,
            cardinality(p_ids));
    ELSE
        SELECT count(*) FILTER (WHERE c.answer IN ('cancelled', 'requested')), 0,
            coalesce(array_agg(DISTINCT c.to_notify) FILTER (WHERE c.to_notify IS NOT NULL), ARRAY[]::text[])
        INTO changed, held, to_notify
        FROM (
            SELECT i.id FROM unnest(p_ids) AS i (id) LEFT JOIN {schema}.job j ON j.id = i.id ORDER BY j.lane OFFSET 0
        ) i CROSS JOIN LATERAL {schema}.cancel_job_1(p_now, i.id) c;
    END IF;
END $$;

-- name: cancel_bulk_operation
-- End a running bulk operation as cancelled. A claimed step is lost, because the fence rises.
-- Inputs: the time or NULL; the id
-- Result: the operation; NULL: there is none
-- Locks: the row of the operation: waits for a step that is being written
CREATE OR REPLACE FUNCTION {schema}.cancel_bulk_operation_1(
    p_now int8, p_id text, OUT operation {schema}.bulk_operation
) LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.bulk_operation b SET state = 'cancelled', ended_at = {schema}.get_write_time_1(p_now),
        fence = b.fence + 1, leased_until = NULL
    WHERE b.id = p_id AND b.state = 'running';
    SELECT b.* INTO operation FROM {schema}.bulk_operation b WHERE b.id = p_id;
END $$;
