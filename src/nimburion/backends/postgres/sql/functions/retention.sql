-- Retention: remove old jobs, count finished jobs, create and drop daily partitions.
--
-- Finished jobs are not deleted row by row. The row in `horizon` moves forward, queries ignore jobs before it, and a
-- partition is dropped when its whole day is before it. `maintain_partitions` and `create_partition` run with the rights
-- of the owner of the tables (SECURITY DEFINER), so workers need no right to create tables. They wait at most 200 ms for
-- a lock; the next call tries again.

-- name: prune_jobs
-- Remove jobs and results whose retention is over.
-- Inputs: the time or NULL; the retention of completed jobs, of failed jobs and of results, in microseconds (NULL: no
--   end); the maximum number of completed and cancelled jobs to keep (NULL: all); the lengths of the intervals of
--   statistics, and for how many seconds each is kept; the maximum number to remove
-- Result: the number of removed jobs and results
-- A session is kept for a day after its end, and then until all jobs that it ended are removed: they refer to it.
-- The steps and signals of removed jobs are removed, as `prune_runs_1`.
-- A flow is removed with its groups when it ended longer ago than any of its members is kept. Its jobs are kept while it runs.
-- Locks: the rows that it deletes; the two rows of `horizon`
CREATE OR REPLACE FUNCTION {schema}.prune_jobs_1(
    p_now int8, p_completed int8, p_failed int8, p_results int8, p_most int8, p_steps int4[], p_keeps int8[],
    p_limit int4
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    available int4 := p_limit;
    expired record;
    flow_since int8 := {schema}.find_running_flow_1();
    forgotten int8[] := '{}';
BEGIN
    WITH deleted AS (
        DELETE FROM {schema}.session s USING {schema}.horizon h WHERE s.is_drained AND s.ended_at < now - 86400000000
            AND h.what = 'completed' AND s.ended_at + 3600000000 < h.finished_at  -- a rescue may end its jobs a little later
        RETURNING s.number
    )
    DELETE FROM {schema}.session_description d USING deleted WHERE d.session = deleted.number;
    FOR i IN 1..cardinality(p_steps) LOOP
        DELETE FROM {schema}.statistics t
        WHERE t.step = p_steps[i] AND t.start < (now - p_keeps[i] * 1000000 + 999999) / 1000000;
    END LOOP;
    DELETE FROM {schema}.exchange_log t WHERE NOT EXISTS (
        SELECT FROM {schema}.session s WHERE s.number = t.session AND NOT s.is_drained
    );
    PERFORM {schema}.prune_keys_1(now);
    PERFORM {schema}.keep_members_1(now, 'completed', now - p_completed);
    PERFORM {schema}.keep_members_1(now, 'result', now - p_results);
    PERFORM {schema}.keep_dependents_1(now, now - p_completed, now - p_failed);
    available := available - {schema}.prune_members_1(now - p_completed, now - p_failed, now - p_results, available);
    available := available - {schema}.advance_retention_1('completed', now - p_completed, available);
    -- The results of removed jobs are removed.
    UPDATE {schema}.horizon r SET finished_at = c.finished_at, seq = c.seq FROM {schema}.horizon c
    WHERE r.what = 'result' AND c.what = 'completed' AND (c.finished_at, c.seq) > (r.finished_at, r.seq);
    FOR expired IN
        SELECT d.seq FROM {schema}.dead_letter d WHERE d.finished_at < now - p_failed AND (
            flow_since IS NULL OR NOT EXISTS (
                SELECT FROM {schema}.job j JOIN {schema}.flow f ON f.number = abs(j.flow)
                JOIN {schema}.flow r ON r.number = coalesce(f.root, f.number)
                WHERE j.seq = d.seq AND r.finished_at IS NULL
            ))
        ORDER BY d.finished_at, d.seq LIMIT available FOR UPDATE SKIP LOCKED
    LOOP
        DELETE FROM {schema}.dead_letter d WHERE d.seq = expired.seq;
        DELETE FROM {schema}.job j WHERE j.seq = expired.seq;
        PERFORM {schema}.drop_attempt_state_1(ARRAY[expired.seq], 3::int2);
        forgotten := forgotten || expired.seq;
        available := available - 1;
    END LOOP;
    PERFORM {schema}.forget_runs_1(forgotten);
    IF p_most IS NOT NULL THEN
        available := available - {schema}.prune_excess_1(p_most, flow_since, available);
    END IF;
    available := available - {schema}.advance_retention_1('result', now - p_results, available);
    IF p_completed IS NOT NULL AND p_failed IS NOT NULL THEN
        PERFORM {schema}.prune_flows_1(now - GREATEST(p_completed, p_failed));
    END IF;
    PERFORM {schema}.prune_runs_1(now, p_limit);
    PERFORM {schema}.count_new_finished_1(now, 20000);
    DELETE FROM {schema}.finished_job_default d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM {schema}.finished_job_default o, {schema}.horizon h
        WHERE h.what = 'completed' AND o.finished_at < h.finished_at LIMIT 10000));
    DELETE FROM {schema}.result_default d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM {schema}.result_default o, {schema}.horizon h
        WHERE h.what = 'result' AND o.finished_at < h.finished_at LIMIT 10000));
    RETURN p_limit - available;
END $$;

-- name: prune_keys
-- Delete unique keys and records of replacements that have expired, and keys that could not be released when their job ended.
-- Inputs: the time
-- Locks: the rows that it deletes; rows that another transaction has locked are skipped, and left for the next call
CREATE OR REPLACE FUNCTION {schema}.prune_keys_1(p_now int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
        SELECT u.ctid FROM {schema}.unique_key u WHERE u.valid_until <= p_now FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM {schema}.replacement WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM {schema}.replacement r WHERE r.valid_until <= p_now FOR UPDATE SKIP LOCKED
    ));
    IF EXISTS (SELECT FROM {schema}.unreleased_key) THEN
        DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM {schema}.unreleased_key n
            JOIN {schema}.unique_key u ON u.name = n.name AND u.key = n.key AND u.seq = n.seq
            WHERE u.valid_until IS NULL AND (
                NOT EXISTS (SELECT FROM {schema}.job j WHERE j.seq = u.seq)
                OR EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = u.seq)
            ) FOR UPDATE OF u SKIP LOCKED
        ));
        DELETE FROM {schema}.unreleased_key n WHERE NOT EXISTS (
            SELECT FROM {schema}.unique_key u WHERE u.name = n.name AND u.key = n.key AND u.seq = n.seq
        );
    END IF;
END $$;

-- name: advance_retention
-- Remove the jobs or results that ended before a time, oldest first, by moving a horizon. Partitions whose whole day is
-- before the horizon are dropped later.
-- Inputs: `completed` or `result`; the time (NULL: remove nothing); the maximum number
-- Result: the number of removed jobs or results
-- Locks: the row of the horizon
-- Atomic: one transaction; queries ignore everything before the horizon. It reads ranges that grow in size, because no
--   index has this order.
CREATE OR REPLACE FUNCTION {schema}.advance_retention_1(p_what text, p_before int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    batch record;
    edge int8;
    step int8 := 10000;
    available int4 := p_limit;
BEGIN
    SELECT * INTO h FROM {schema}.horizon WHERE what = p_what FOR UPDATE;
    IF p_before IS NULL OR p_limit <= 0 OR (p_before, 0) <= (h.finished_at, h.seq) THEN
        RETURN 0;
    END IF;
    IF h.finished_at < 0 THEN
        h.finished_at := coalesce(CASE p_what
            WHEN 'completed' THEN (SELECT min(d.finished_at) FROM {schema}.finished_job d WHERE d.finished_at < p_before)
            ELSE (SELECT min(d.finished_at) FROM {schema}.result d WHERE d.finished_at < p_before) END, p_before);
        h.seq := 0;
    END IF;
    LOOP
        edge := LEAST(p_before, h.finished_at + step);
        SELECT * INTO batch FROM {schema}.find_finished_1(p_what, h.finished_at, h.seq, edge, available);
        available := available - batch.number;
        h.finished_at := CASE WHEN available > 0 THEN edge ELSE batch.finished_at END;
        h.seq := CASE WHEN available > 0 THEN 0 ELSE batch.seq END;
        EXIT WHEN available = 0 OR edge >= p_before;
        step := 2 * step;
    END LOOP;
    UPDATE {schema}.horizon SET finished_at = h.finished_at, seq = h.seq WHERE what = p_what;
    RETURN p_limit - available;
END $$;

-- name: find_finished
-- Find the jobs or results that ended first after a position.
-- Inputs: `completed` or `result`; the position (time and seq); the time before which they ended; the maximum number
-- Result: their number, and the position of the last one
CREATE OR REPLACE FUNCTION {schema}.find_finished_1(
    p_what text, p_finished int8, p_seq int8, p_before int8, p_most int4
) RETURNS TABLE (number int4, finished_at int8, seq int8)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off AS $$
BEGIN
    IF p_what = 'completed' THEN
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished_at),
            (array_agg(d.seq ORDER BY d.finished_at DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished_at, d.seq FROM {schema}.finished_job d
            WHERE d.finished_at >= p_finished AND d.finished_at < p_before
                AND (d.finished_at, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished_at, d.seq LIMIT p_most
        ) d;
    ELSE
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished_at),
            (array_agg(d.seq ORDER BY d.finished_at DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished_at, d.seq FROM {schema}.result d
            WHERE d.finished_at >= p_finished AND d.finished_at < p_before
                AND (d.finished_at, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished_at, d.seq LIMIT p_most
        ) d;
    END IF;
END $$;

-- name: prune_excess
-- Remove the oldest completed and cancelled jobs if there are more than the number to keep.
-- Jobs whose flow runs do not count, and stay. So do those that were cancelled because of another job.
-- Inputs: the number to keep; since when the oldest flow runs (NULL: no flow runs); the maximum number to remove
-- Result: the number of removed jobs
-- Locks: advisory lock 7044, shared; the rows that it deletes
CREATE OR REPLACE FUNCTION {schema}.prune_excess_1(p_most int8, p_flow_since int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    kept int8;
    pruned int4;
    removed int8[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    SELECT * INTO h FROM {schema}.horizon WHERE what = 'completed';
    SELECT sum(e.number) INTO kept FROM {schema}.count_finished_1(NULL) e;
    IF p_flow_since IS NOT NULL AND kept > p_most THEN
        kept := kept - (
            SELECT count(*) FROM {schema}.finished_job o
            WHERE o.finished_at >= p_flow_since AND (o.finished_at, o.seq) > (h.finished_at, h.seq)
                AND CASE WHEN strpos(o.options, '"flow":') > 0 THEN {schema}.is_in_running_flow_1(o.options) END
        );
    END IF;
    kept := kept - (
        SELECT count(*) FROM {schema}.dependent d WHERE d.cancelled_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.number = d.root AND f.finished_at IS NULL)
    );
    IF kept <= p_most OR p_limit <= 0 THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM {schema}.finished_job d USING (
            SELECT o.finished_at, o.seq FROM {schema}.finished_job o
            WHERE o.finished_at >= h.finished_at AND (o.finished_at, o.seq) > (h.finished_at, h.seq)
                AND CASE WHEN p_flow_since IS NOT NULL AND strpos(o.options, '"flow":') > 0
                    THEN NOT {schema}.is_in_running_flow_1(o.options) ELSE true END
                AND (o.state <> 3 OR o.reason IS NULL OR o.reason NOT IN ('dependency', 'not needed'))
            ORDER BY o.finished_at, o.seq LIMIT LEAST(p_limit, kept - p_most)
        ) o WHERE d.finished_at = o.finished_at AND d.seq = o.seq RETURNING d.seq, d.finished_at, d.lane, d.state
    ), results AS (
        DELETE FROM {schema}.result r USING old o WHERE r.seq = o.seq AND r.finished_at = o.finished_at
    )
    SELECT count(*), count({schema}.uncount_finished_1(old.finished_at, old.lane, old.state)), array_agg(old.seq)
    INTO pruned, kept, removed FROM old;
    PERFORM {schema}.forget_runs_1(removed);
    RETURN pruned;
END $$;

-- name: count_new_finished
-- Count the jobs that finished since the last count, so that `count_by_state_1` does not count all jobs.
-- Inputs: the time; the minimum number of jobs. Fewer jobs are left to the next count.
-- Result: the number of counted jobs. Calls within half a minute after a count return 0.
-- Locks: advisory lock 7044, which deletions of finished jobs share. If it is not free, nothing is done.
-- Atomic: part of the caller's transaction. Jobs that ended before a time are counted after every transaction has ended
--   that began up to one minute after that time. No job can then be added to them. A clock that is set back by less than
--   a minute therefore causes no error.
CREATE OR REPLACE FUNCTION {schema}.count_new_finished_1(p_now int8, p_least int4) RETURNS int8
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    next record;
    first int8;
    counted int8 := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.count_new_finished_1', 7044)) THEN
        RETURN 0;
    END IF;
    SELECT * INTO STRICT next FROM {schema}.count_cursor;
    IF next.upto > p_now - 90000000 THEN
        RETURN 0;
    END IF;
    IF next.xid < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS int8) THEN
        SELECT GREATEST(max(t.upto), (SELECT h.finished_at FROM {schema}.horizon h WHERE h.what = 'completed'))
        INTO first FROM {schema}.finished_count t;
        WITH new AS (
            SELECT d.lane, d.state, count(*) AS number FROM {schema}.finished_job d, {schema}.horizon h
            WHERE h.what = 'completed' AND d.finished_at >= first AND d.finished_at < next.upto
                AND (d.finished_at, d.seq) > (h.finished_at, h.seq) GROUP BY d.lane, d.state
        ), i AS (
            INSERT INTO {schema}.finished_count (since, upto, lane, state, number)
            SELECT first, next.upto, new.lane, new.state, new.number FROM new
            WHERE (SELECT sum(number) FROM new) >= p_least
        )
        SELECT coalesce(sum(number), 0) INTO counted FROM new;
    ELSIF next.xid < 9223372036854775807 THEN
        RETURN 0;
    END IF;
    DELETE FROM {schema}.finished_count t USING {schema}.horizon h WHERE h.what = 'completed' AND t.upto <= h.finished_at;
    UPDATE {schema}.count_cursor SET upto = p_now - 60000000,
        xid = CAST(CAST(pg_current_xact_id() AS text) AS int8);
    RETURN CASE WHEN counted >= p_least THEN counted ELSE 0 END;
END $$;

-- name: uncount_finished
-- Subtract a deleted job from the count of finished jobs.
-- Inputs: when the job ended; its lane and state
-- Locks: the row of the count. The caller took advisory lock 7044, shared, before it deleted the job, so that the job is
--   not counted while it is deleted.
CREATE OR REPLACE FUNCTION {schema}.uncount_finished_1(p_finished int8, p_lane int4, p_state int2) RETURNS void
LANGUAGE sql AS $$
    UPDATE {schema}.finished_count SET number = number - 1
    WHERE upto > p_finished AND since <= p_finished AND lane = p_lane AND state = p_state
$$;

-- name: count_finished
-- Count the completed and cancelled jobs.
-- Inputs: the lanes; NULL: all lanes
-- Result: states, each with a number; a state may occur in several rows
-- Atomic: one statement. Jobs that `count_new_finished_1` has counted are not counted again, except in the period that
--   contains the horizon.
CREATE OR REPLACE FUNCTION {schema}.count_finished_1(p_lanes int4[]) RETURNS TABLE (state int2, number int8)
LANGUAGE sql STABLE SET enable_seqscan TO off SET jit TO off AS $$
    WITH h AS (SELECT finished_at, seq FROM {schema}.horizon WHERE what = 'completed'),
    e AS (
        SELECT coalesce(max(t.upto) FILTER (
                WHERE (t.since, 0) < (h.finished_at, h.seq) AND t.upto > h.finished_at
            ), h.finished_at) AS part, GREATEST(max(t.upto), h.finished_at) AS last
        FROM h LEFT JOIN {schema}.finished_count t ON true GROUP BY h.finished_at
    )
    SELECT t.state, CAST(sum(t.number) AS int8) FROM {schema}.finished_count t
    WHERE (t.since, 0) >= (SELECT finished_at, seq FROM h)
        AND (p_lanes IS NULL OR t.lane = ANY (p_lanes)) GROUP BY t.state
    UNION ALL
    SELECT d.state, count(*) FROM {schema}.finished_job d
    WHERE d.finished_at >= (SELECT finished_at FROM h) AND d.finished_at < (SELECT part FROM e)
        AND (d.finished_at > (SELECT finished_at FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
    UNION ALL
    SELECT d.state, count(*) FROM {schema}.finished_job d
    WHERE d.finished_at >= (SELECT last FROM e)
        AND (d.finished_at > (SELECT finished_at FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
$$;

-- name: maintain_partitions
-- Create the partitions of today and the next three days, unless they are before the horizon, and drop those before it.
-- Inputs: none; the server's clock determines the day
-- Result: the number of created and dropped partitions
-- Locks: advisory lock 7042; if it is not free, nothing is done. To create a partition, the default partition, which is
--   normally empty. To drop one, the whole table in ACCESS EXCLUSIVE. If it has waited for a lock for 200 ms, it leaves the
--   rest to the next call: each wait delays who needs the table meanwhile.
-- Atomic: each partition is created or dropped completely. It runs with the rights of the owner of the tables, so workers
--   need no right to create tables.
CREATE OR REPLACE FUNCTION {schema}.maintain_partitions_1() RETURNS int4
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog, pg_temp
SET lock_timeout TO '200ms' AS $$
DECLARE
    changed int4 := 0;
    created int4;
    ours regclass;
    horizon int8;
    day date;
    expired record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.maintain_partitions_1', 7042)) THEN
        RETURN 0;
    END IF;
    FOREACH ours IN ARRAY ARRAY[CAST('{schema}.finished_job' AS regclass), CAST('{schema}.result' AS regclass)] LOOP
        horizon := (SELECT h.finished_at FROM {schema}.horizon h WHERE ours = CASE h.what
            WHEN 'completed' THEN CAST('{schema}.finished_job' AS regclass) ELSE CAST('{schema}.result' AS regclass) END);
        FOR ahead IN 0..3 LOOP
            day := CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date) + ahead;
            CONTINUE WHEN extract(epoch FROM day + 1) * 1000000 < horizon;
            created := {schema}.create_partition_1(ours, day);
            IF created IS NULL THEN
                RETURN changed;
            END IF;
            changed := changed + created;
        END LOOP;
    END LOOP;
    FOR expired IN
        SELECT c.oid, c.relname, n.nspname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN {schema}.horizon h ON i.inhparent = CASE h.what
            WHEN 'completed' THEN CAST('{schema}.finished_job' AS regclass) ELSE CAST('{schema}.result' AS regclass) END
        WHERE c.relname ~ '_d[0-9]{8}$'
            AND extract(epoch FROM to_date(right(c.relname, 8), 'YYYYMMDD') + 1) * 1000000 < h.finished_at
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %I.%I', expired.nspname, expired.relname);
            changed := changed + 1;
        EXCEPTION WHEN lock_not_available THEN
            EXIT;
        END;
    END LOOP;
    RETURN changed;
END $$;

-- name: create_partition
-- Create the partition of a day if it does not exist.
-- Inputs: the partitioned table; the day
-- Result: 1: created; 0: it exists, or the default partition has rows of the day; NULL: a lock was not free in time
-- Locks: the default partition; it waits for the `lock_timeout` of the caller (200 ms)
-- Atomic: the partition is created completely, then attached. If the default partition contains rows of that day already,
--   they stay there and no partition is created.
CREATE OR REPLACE FUNCTION {schema}.create_partition_1(p_table regclass, p_day date) RETURNS int4
LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    ours record;
    part text;
    first int8 := CAST(extract(epoch FROM p_day) * 1000000 AS int8);
BEGIN
    SELECT n.nspname, c.relname INTO ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table;
    part := ours.relname || '_d' || to_char(p_day, 'YYYYMMDD');
    IF to_regclass(format('%I.%I', ours.nspname, part)) IS NOT NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING DEFAULTS) WITH (
        autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 20000
    )', ours.nspname, part, p_table);
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I FOR VALUES FROM (%s) TO (%s)', p_table,
        ours.nspname, part, first, first + 86400000000);
    -- The server summarises the first range of a new BRIN index. Each job in a summarised range changes the summary, so a
    -- range is summarised only when it is full.
    PERFORM brin_desummarize_range(i.indexrelid, 0)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE i.indrelid = CAST(format('%I.%I', ours.nspname, part) AS regclass) AND a.amname = 'brin';
    RETURN 1;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN NULL;
    WHEN check_violation OR duplicate_table THEN
        RETURN 0;
END $$;

-- name: list_unmerged_statistics
-- List old statistics whose processes are not merged into one row.
-- Inputs: the time; the lengths of the intervals; after how many seconds an interval is old; the maximum number of groups
-- Result: one row for each interval, queue and name: its key, and the sources and counters of all its rows
CREATE OR REPLACE FUNCTION {schema}.list_unmerged_statistics_1(p_now int8, p_steps int4[], p_after int8, p_limit int4)
RETURNS TABLE (step int4, start int8, queue text, name text, sources text[], counters text[])
LANGUAGE sql STABLE SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
    SELECT t.step, t.start, t.queue, t.name, array_agg(t.source), array_agg(t.counters)
    FROM (
        SELECT DISTINCT old.* FROM unnest(p_steps) AS s (step), LATERAL (
            SELECT u.step, u.start, u.queue, u.name FROM {schema}.statistics u
            WHERE u.source <> '' AND u.step = s.step AND u.start < (p_now - p_after * 1000000) / 1000000 - s.step
            ORDER BY u.start LIMIT p_limit
        ) old LIMIT p_limit
    ) k JOIN {schema}.statistics t ON t.step = k.step AND t.start = k.start AND t.queue = k.queue AND t.name = k.name
    GROUP BY t.step, t.start, t.queue, t.name
$$;

-- name: merge_statistics
-- Replace the rows of several processes by one row each, if they are unchanged since they were read.
-- Inputs: arrays of the same length, one element for each old row: its key and its counters; then arrays of the same
--   length, one element for each new row
-- Result: whether the rows were unchanged; otherwise nothing is written
-- Locks: the rows
-- Atomic: one transaction. Of two calls that merge the same rows, the second finds them deleted.
CREATE OR REPLACE FUNCTION {schema}.merge_statistics_1(
    p_old_steps int4[], p_old_starts int8[], p_old_queues text[], p_old_names text[], p_sources text[],
    p_old_counters text[], p_steps int4[], p_starts int8[], p_queues text[], p_names text[], p_counters text[]
) RETURNS bool
LANGUAGE plpgsql SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    places tid[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT array_agg(locked.place) INTO places FROM (
        SELECT t.ctid AS place
        FROM unnest(p_old_steps, p_old_starts, p_old_queues, p_old_names, p_sources, p_old_counters)
            AS o (step, start, queue, name, source, counters)
        JOIN {schema}.statistics t ON t.step = o.step AND t.start = o.start AND t.queue = o.queue AND t.name = o.name
            AND t.source = o.source AND t.counters = o.counters
        ORDER BY t.step, t.start, t.queue, t.name, t.source FOR UPDATE OF t
    ) locked;
    IF coalesce(cardinality(places), 0) <> cardinality(p_sources) THEN
        RETURN false;
    END IF;
    DELETE FROM {schema}.statistics WHERE ctid = ANY (places);
    INSERT INTO {schema}.statistics (step, start, queue, name, source, counters)
    SELECT n.step, n.start, n.queue, n.name, '', n.counters
    FROM unnest(p_steps, p_starts, p_queues, p_names, p_counters) AS n (step, start, queue, name, counters);
    RETURN true;
END $$;
