-- Functions that the other functions use: time, lanes, waiting jobs, notifications, decoding of arguments.
--
-- `{schema}` is replaced by the quoted name of the schema. Each function name ends in the number of its format (`_1`), so
-- that adjacent versions can run together. A call is one statement and one transaction at READ COMMITTED.
--
-- All functions take locks in this order: a record; the advisory lock of the session; `limit_change`;
-- the tables of limits and pauses; limits by
-- name; the turns of tenants (`tenants.sql`); durable runs by seq (`runs.sql`); unique keys by name and key; then rows of jobs; then flows (`flows.sql`). Rows of jobs that another transaction has locked are skipped.
--
-- Advisory locks. Each is the hash of a text and a number: `hashtextextended(TEXT, NUMBER)`.
--   7041  TEXT is the id of a session. Serialises the calls that change its leases.
--         Taken by: begin_exchange, open_session, release_leases, close_session, rescue_jobs
--   7042  TEXT is the name of `maintain_partitions_1`. One transaction at a time creates and drops partitions.
--         Taken by: maintain_partitions
--   7043  TEXT is the notification channel. One enqueue at a time notifies in its own transaction.
--         Taken by: NOTIFICATION_LOCK (schema.py)
--   7044  TEXT is the name of `count_new_finished_1`. Finished jobs are not counted while they are deleted.
--         Taken by: count_new_finished; shared: delete_jobs, keep_dependents, keep_members, prune_excess, prune_members, reopen_dependents
--   7045  TEXT is the name of `put_record_1`. One transaction at a time adds a record.
--         Taken by: put_record
--   7046  TEXT is the name of `resolve_flows_1`. One transaction at a time applies the changes of sources that are in no flow.
--         Taken by: resolve_flows
--   7047  TEXT is the name of `meta`. One migration at a time runs.
--         Taken by: MIGRATION_LOCK (schema.py)
--   7048  TEXT is the name of `forget_tenants_1`. One transaction at a time reads all tenants to remove unused rows.
--         Taken by: forget_tenants, prune_tenant_lanes
--   7049  TEXT is the name of `exchange_1` and a number from 0 to 3. Four transactions at a time lease many jobs.
--         Taken by: wait_for_others
-- The text of each lock but the first names the schema, so backends in other schemas take other locks. The id of a
-- session is random.

-- name: get_write_time
-- Return the current time in whole microseconds, for a function that writes.
-- Inputs: the time of a test's clock, or NULL for the server's clock
-- Result: the time
-- Locks: none. The function assigns a transaction number before it reads the clock. A transaction without a number will
--   therefore read a later time. The low-water marks depend on this.
CREATE OR REPLACE FUNCTION {schema}.get_write_time_1(p_now int8) RETURNS int8
LANGUAGE sql AS $$
    SELECT CASE WHEN pg_current_xact_id() IS NOT NULL
        THEN coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8)) END
$$;

-- name: get_read_time
-- Return the current time in whole microseconds, for a function that only reads.
-- Inputs: the time of a test's clock, or NULL for the server's clock
-- Result: the time
CREATE OR REPLACE FUNCTION {schema}.get_read_time_1(p_now int8) RETURNS int8
LANGUAGE sql STABLE AS $$
    SELECT coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))
$$;

-- name: get_lowest_time
-- Return the lowest value that a time can have. A low-water mark of this value means that nothing is known of the lane.
-- Result: the time
-- Atomic: a constant, which the planner puts in place of the call
CREATE OR REPLACE FUNCTION {schema}.get_lowest_time_1() RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT -9223372036854775808
$$;

-- name: note_feature
-- Record that a feature is used, so that exchanges look for it. Call it in the transaction of the first use.
-- Inputs: the name of the feature: limits, pauses, tenants, flows or runs
-- Locks: waits for another transaction that is recording the same feature
CREATE OR REPLACE FUNCTION {schema}.note_feature_1(p_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.used_feature f WHERE f.name = p_name) THEN
        INSERT INTO {schema}.used_feature (name) VALUES (p_name) ON CONFLICT DO NOTHING;
    END IF;
END $$;

-- name: get_or_create_lanes
-- Return the numbers of lanes. Lanes that do not exist are created.
-- Inputs: arrays of the same length: queues, names and ranks. A queue that is followed by a newline and a tenant means the
--   lane of the jobs that wait for the turn of this tenant.
-- Result: the numbers in the same order; those of lanes with a tenant are below 0
-- Locks: waits for another transaction that is creating one of the lanes; lanes with a tenant, as `lock_tenant_lanes_1`
-- Atomic: lanes without a tenant are never changed or deleted, so an existing one needs no lock
CREATE OR REPLACE FUNCTION {schema}.get_or_create_lanes_1(p_queues text[], p_names text[], p_ranks int2[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    found_ids int4[];
BEGIN
    FOR attempt IN 1..3 LOOP
        SELECT array_agg(l.id ORDER BY w.place) INTO found_ids
        FROM unnest(p_queues, p_names, p_ranks) WITH ORDINALITY AS w (queue, name, rank, place)
        LEFT JOIN LATERAL (
            SELECT l.id FROM {schema}.lane l
            WHERE l.queue = split_part(w.queue, E'\n', 1) AND l.name = w.name
                AND l.tenant = split_part(w.queue, E'\n', 2) AND l.rank = w.rank AND NOT l.is_late OFFSET 0
        ) l ON true;
        IF array_position(found_ids, NULL) IS NULL AND (0 < ALL (found_ids) OR {schema}.lock_tenant_lanes_1(found_ids)) THEN
            RETURN found_ids;
        END IF;
        INSERT INTO {schema}.lane (id, queue, name, rank) OVERRIDING SYSTEM VALUE
        SELECT {schema}.make_lane_number_1(), n.queue, n.name, n.rank FROM (
            SELECT DISTINCT w.* FROM unnest(p_queues, p_names, p_ranks) AS w (queue, name, rank)
            WHERE strpos(w.queue, E'\n') = 0 AND NOT EXISTS (
                SELECT FROM {schema}.lane l WHERE l.queue = w.queue AND l.name = w.name AND l.tenant = '' AND l.rank = w.rank
                    AND NOT l.is_late OFFSET 0
            ) ORDER BY 1, 2, 3
        ) n
        ON CONFLICT DO NOTHING;
        IF array_to_string(p_queues, '') LIKE E'%\n%' THEN
            PERFORM {schema}.create_tenant_lanes_1(p_queues, p_names, p_ranks);
        END IF;
    END LOOP;
    RAISE EXCEPTION 'the lanes of these jobs are being created or deleted; try again' USING ERRCODE = 'serialization_failure';
END $$;

-- name: lock_tenant_lanes
-- Keep lanes with a tenant from being deleted until the transaction ends.
-- Inputs: the numbers of lanes; those without a tenant are left out
-- Result: whether all are still there
-- Locks: the lanes, FOR KEY SHARE. It waits only for `prune_tenant_lanes_1`, which is short.
CREATE OR REPLACE FUNCTION {schema}.lock_tenant_lanes_1(p_lanes int4[]) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    locked int8;
BEGIN
    PERFORM FROM {schema}.lane l WHERE l.id = ANY (p_lanes) AND l.id < 0 ORDER BY l.id FOR KEY SHARE;
    GET DIAGNOSTICS locked = ROW_COUNT;
    RETURN locked = (SELECT count(DISTINCT lane) FROM unnest(p_lanes) lane WHERE lane < 0);
END $$;

-- name: create_tenant_lanes
-- Create lanes with tenants. The first lane of a queue, rank and tenant gives its number to the share of the tenant.
-- Inputs: as for `get_or_create_lanes_1`; queues without a tenant are left out
-- Locks: waits for another transaction that is creating one of the lanes; the first lanes, as `lock_tenant_lanes_1`
-- Atomic: the index `lane_first` lets only one transaction create a first lane. The second statement sees it.
CREATE OR REPLACE FUNCTION {schema}.create_tenant_lanes_1(p_queues text[], p_names text[], p_ranks int2[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.note_feature_1('tenants');
    INSERT INTO {schema}.lane (id, queue, name, rank, tenant, share) OVERRIDING SYSTEM VALUE
    SELECT f.id, f.queue, f.name, f.rank, f.tenant, f.id FROM (
        SELECT -{schema}.make_lane_number_1() AS id, w.* FROM (
            SELECT DISTINCT ON (1, 2, 3) split_part(u.queue, E'\n', 1) AS queue, split_part(u.queue, E'\n', 2) AS tenant, u.rank, u.name
            FROM unnest(p_queues, p_names, p_ranks) AS u (queue, name, rank)
            WHERE strpos(u.queue, E'\n') > 0 ORDER BY 1, 2, 3, 4
        ) w
        WHERE NOT EXISTS (
            SELECT FROM {schema}.lane l
            WHERE l.queue = w.queue AND l.tenant = w.tenant AND l.rank = w.rank AND l.share = l.id OFFSET 0
        )
        OFFSET 0
    ) f
    ON CONFLICT DO NOTHING;
    INSERT INTO {schema}.lane (id, queue, name, rank, tenant, share) OVERRIDING SYSTEM VALUE
    SELECT -{schema}.make_lane_number_1(), w.queue, w.name, w.rank, w.tenant, f.share FROM (
        SELECT DISTINCT split_part(u.queue, E'\n', 1) AS queue, split_part(u.queue, E'\n', 2) AS tenant, u.rank, u.name
        FROM unnest(p_queues, p_names, p_ranks) AS u (queue, name, rank)
        WHERE strpos(u.queue, E'\n') > 0 ORDER BY 1, 2, 3, 4
    ) w
    CROSS JOIN LATERAL (
        SELECT l.share FROM {schema}.lane l
        WHERE l.queue = w.queue AND l.tenant = w.tenant AND l.rank = w.rank AND l.share = l.id FOR KEY SHARE
    ) f
    WHERE NOT EXISTS (
        SELECT FROM {schema}.lane l
        WHERE l.queue = w.queue AND l.tenant = w.tenant AND l.name = w.name AND l.rank = w.rank AND NOT l.is_late OFFSET 0
    )
    ON CONFLICT DO NOTHING;
END $$;

-- name: make_lane_number
-- Return a number for a new lane. After the last number the sequence begins again; numbers of lanes that exist are passed over.
-- Result: a number above 0, which no lane has, neither as it is nor below 0
-- Atomic: it runs with the rights of the owner of the tables, because it uses a sequence
CREATE OR REPLACE FUNCTION {schema}.make_lane_number_1() RETURNS int4
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    number int4;
BEGIN
    LOOP
        number := nextval(CAST(pg_get_serial_sequence('{schema}.lane', 'id') AS regclass));
        EXIT WHEN NOT EXISTS (SELECT FROM {schema}.lane l WHERE l.id IN (number, -number));
    END LOOP;
    RETURN number;
END $$;

-- name: get_or_create_late_lane
-- Return the late lane of a lane: it holds jobs that return with an earlier due time (see `lane` in the migration).
-- Inputs: the number of the lane
-- Result: the number of its late lane, which is created if it does not exist
-- Locks: waits for another transaction that is creating it
-- Atomic: lanes without a tenant are never changed or deleted, so an existing one needs no lock
CREATE OR REPLACE FUNCTION {schema}.get_or_create_late_lane_1(p_lane int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    late_id int4;
BEGIN
    IF p_lane < 0 THEN  -- a lane with a tenant is read without a low-water mark
        RETURN p_lane;
    END IF;
    LOOP
        SELECT b.id INTO late_id FROM {schema}.lane a JOIN {schema}.lane b
            ON b.queue = a.queue AND b.name = a.name AND b.tenant = a.tenant AND b.rank = a.rank AND b.is_late
        WHERE a.id = p_lane;
        EXIT WHEN FOUND;
        INSERT INTO {schema}.lane (id, queue, name, rank, is_late, main_lane) OVERRIDING SYSTEM VALUE
        SELECT {schema}.make_lane_number_1(), queue, name, rank, true, id FROM {schema}.lane WHERE id = p_lane
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN late_id;
END $$;

-- name: create_lanes
-- Create lanes for a transaction that will enqueue jobs in them.
-- Inputs: arrays of the same length: queues, names and ranks; whether to create their late lanes too, for jobs with a
--   due time in the past
-- Locks: waits for another transaction that is creating one of the lanes
-- Atomic: lanes without a tenant are never changed or deleted. Those with one stay while they have jobs; if a lane is deleted
--   before the jobs come, `enqueue_1` creates it again.
CREATE OR REPLACE FUNCTION {schema}.create_lanes_1(p_queues text[], p_names text[], p_ranks int2[], p_late bool)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lanes int4[] := {schema}.get_or_create_lanes_1(p_queues, p_names, p_ranks);
BEGIN
    IF p_late THEN
        PERFORM {schema}.get_or_create_late_lane_1(id) FROM unnest(lanes) id;
    END IF;
END $$;

-- name: get_queues_of_lanes
-- Return the queues of lanes.
-- Inputs: the numbers of lanes
-- Result: the names of their queues, without duplicates
CREATE OR REPLACE FUNCTION {schema}.get_queues_of_lanes_1(p_lanes int4[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT l.queue FROM {schema}.lane l WHERE l.id = ANY (p_lanes));
END $$;

-- name: replace_nul
-- Replace each NUL in the options of a job. The server's JSON operators fail on a NUL, which a header may contain.
-- Inputs: the options as JSON
-- Result: JSON
CREATE OR REPLACE FUNCTION {schema}.replace_nul_1(p_options text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN strpos(p_options, '\u0000') = 0 THEN p_options
        ELSE regexp_replace(p_options, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\u0001', 'g') END
$$;

-- name: make_waiting
-- Add a job to `ready`, or to `scheduled` if it is not due.
-- Inputs: the time; seq, due time and lane of the job; its attempt status (0: no attempt has ended, 1: an attempt has
--   ended, 2: an attempt has failed)
CREATE OR REPLACE FUNCTION {schema}.make_waiting_1(
    p_now int8, p_seq int8, p_due int8, p_lane int4, p_attempt_status int2
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_due > p_now THEN
        INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status) VALUES (p_due, p_seq, p_lane, p_attempt_status);
    ELSIF p_due = p_now THEN
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status) VALUES (p_due, p_seq, p_lane, p_attempt_status);
    ELSE
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        VALUES (p_due, p_seq, {schema}.get_or_create_late_lane_1(p_lane), p_attempt_status);
    END IF;
END $$;

-- name: remove_waiting
-- Delete a waiting job from `scheduled` or `ready`.
-- Inputs: lane, due time and seq of the job; whether the turn of its tenant is moved, for which exchanges wait. Else the next
--   exchange that reads the turn moves it.
-- Result: whether it was there
-- Atomic: each DELETE is one step
-- It moves the turn itself: a trigger would read each row that exchanges delete, and these move all turns at once (`move_turns_1`).
CREATE OR REPLACE FUNCTION {schema}.remove_waiting_1(
    p_lane int4, p_due int8, p_seq int8, p_moves_turn bool DEFAULT true
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    removed_lane int4;
BEGIN
    DELETE FROM {schema}.scheduled WHERE due = p_due AND seq = p_seq;
    IF FOUND THEN
        RETURN true;
    END IF;
    DELETE FROM {schema}.ready r USING {schema}.lane a, {schema}.lane b
    WHERE a.id = p_lane AND b.queue = a.queue AND b.name = a.name AND b.tenant = a.tenant AND b.rank = a.rank
        AND r.lane = b.id AND r.due = p_due AND r.seq = p_seq
    RETURNING r.lane INTO removed_lane;
    IF removed_lane < 0 AND p_moves_turn THEN
        PERFORM {schema}.remove_turn_1(removed_lane, p_seq);
    END IF;
    RETURN removed_lane IS NOT NULL;
END $$;

-- name: wake_workers
-- Wake one idle worker for each job. If too few workers of a queue are idle, notify all that listen.
-- Inputs: the channel on which all listen; the id of the sending handle; the names of queues, and of sessions (`@` and the
--   id); for each the number of its jobs, at least 2^30 to notify all; whether another worker found no job after this wake-up:
--   then nothing is sent to all
-- Result: true
-- Locks: rows of `idle_worker`, where rows that another transaction has locked are skipped; the server's lock on notifying
--   commits of the database, taken at the commit
-- Atomic: the server sends the notifications with the commit. A worker's own channel carries the name of the queue, with `!`
--   before it if the wake-up must not be passed on. The common channel carries the id of the sender, then names; `*` and `@`
--   mean all, and are sent when the names are longer than 7000 bytes.
CREATE OR REPLACE FUNCTION {schema}.wake_workers_1(
    p_channel text, p_sender text, p_names text[], p_jobs int4[], p_passed bool
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    name text;
    jobs int4;
    chosen text;
    to_all text[] := '{}';
    message text;
BEGIN
    FOR name, jobs IN SELECT * FROM unnest(p_names, p_jobs) LOOP
        IF jobs < 1073741824 THEN
            FOR chosen IN
                UPDATE {schema}.idle_worker SET is_waiting = false WHERE channel = ANY (ARRAY(
                    SELECT w.channel FROM {schema}.idle_worker w
                    WHERE w.is_waiting AND name = ANY (w.queues) AND w.channel <> 'nimburion.' || p_sender
                    ORDER BY w.since LIMIT jobs FOR UPDATE SKIP LOCKED
                )) RETURNING channel
            LOOP
                PERFORM pg_notify(chosen, CASE WHEN p_passed THEN '!' ELSE '' END || name);
                jobs := jobs - 1;
            END LOOP;
        END IF;
        IF jobs > 0 AND NOT p_passed THEN
            to_all := to_all || name;
        END IF;
    END LOOP;
    IF to_all <> '{}' THEN
        message := p_sender || E'\n' || array_to_string(to_all, E'\n');
        PERFORM pg_notify(p_channel, CASE WHEN octet_length(message) > 7000 THEN p_sender || E'\n*\n@' ELSE message END);
    END IF;
    RETURN true;
END $$;

-- name: notify_queues
-- Wake one idle worker for each job when the caller's transaction commits. A rollback sends nothing.
-- Inputs: the channel on which all listen; the queue of each job
-- Locks: the server's lock on notifying commits of the database, taken at the commit
-- Atomic: the server sends the notifications with the commit. The workers are chosen now and stay idle for others, because
--   the transaction may stay open. One that is busy at the commit wakes another. If too few are idle, all that listen are
--   notified, as in `wake_workers_1`; the message has no sender id, so every process handles it.
CREATE OR REPLACE FUNCTION {schema}.notify_queues_1(p_channel text, p_queues text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    name text;
    jobs int4;
    chosen text;
    to_all text[] := '{}';
    message text;
BEGIN
    FOR name, jobs IN
        SELECT split_part(q, E'\n', 1), LEAST(count(*), 1000000) FROM unnest(p_queues) q GROUP BY 1 ORDER BY 1
    LOOP
        FOR chosen IN
            SELECT w.channel FROM {schema}.idle_worker w WHERE w.is_waiting AND name = ANY (w.queues)
            ORDER BY w.since LIMIT jobs
        LOOP
            PERFORM pg_notify(chosen, name);
            jobs := jobs - 1;
        END LOOP;
        IF jobs > 0 THEN
            to_all := to_all || name;
        END IF;
    END LOOP;
    IF to_all <> '{}' THEN
        message := E'\n' || array_to_string(to_all, E'\n');
        PERFORM pg_notify(p_channel, CASE WHEN octet_length(message) > 7000 THEN E'\n*' ELSE message END);
    END IF;
END $$;

-- name: decode_hex_array
-- Decode a JSON array of hexadecimal texts.
-- Inputs: the array
-- Result: the bytes, in order
CREATE OR REPLACE FUNCTION {schema}.decode_hex_array_1(p_array json) RETURNS bytea[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY(SELECT decode(e, 'hex') FROM json_array_elements_text(p_array) e)
$$;

-- name: decode_text_array
-- Decode a JSON array of texts.
-- Inputs: the array, or JSON null
-- Result: the texts, in order; NULL for JSON null
CREATE OR REPLACE FUNCTION {schema}.decode_text_array_1(p_array json) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN json_typeof(p_array) = 'array' THEN ARRAY(SELECT json_array_elements_text(p_array)) END
$$;

-- name: get_state
-- Return the state of a job.
-- Inputs: status, failures and due time of the job, as in `job_record`; the time
-- Result: the state; NULL: the status is NULL
CREATE OR REPLACE FUNCTION {schema}.get_state_1(p_status text, p_failures int4, p_due int8, p_now int8) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_status <> 'waiting' OR p_status IS NULL THEN p_status WHEN p_failures > 0 THEN 'retrying'
        WHEN p_due > p_now THEN 'scheduled' ELSE 'pending' END
$$;
