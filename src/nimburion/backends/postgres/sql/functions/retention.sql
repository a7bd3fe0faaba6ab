-- Retention: forget what is old, count what has ended, make and drop day partitions.
--
-- History is not deleted row by row: a horizon moves past it, readers look beyond the horizon only, and whole days behind
-- it are dropped. `maintain_partitions` and `create_partition` run with the rights of the owner of the tables (SECURITY DEFINER), so that workers
-- need no right to create anything. They wait 200 ms at most for a lock, and try again the next time.

-- name: prune_jobs
-- Forget what is old enough.
-- Inputs: the time or NULL; how long completed jobs, failed jobs and results are kept, in
--   microseconds, and how many completed ones (each NULL: for ever, all); at most so many
-- Result: how many records and results were forgotten
-- Locks: the rows it deletes; the two rows of `horizon`
CREATE OR REPLACE FUNCTION {schema}.prune_jobs_1(
    p_now int8, p_completed int8, p_failed int8, p_results int8, p_most int8, p_limit int4
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    available int4 := p_limit;
    one record;
BEGIN
    DELETE FROM {schema}.session s WHERE s.is_drained AND s.ended_at < now - 86400000000;
    DELETE FROM {schema}.exchange_log t WHERE NOT EXISTS (SELECT FROM {schema}.session s WHERE s.number = t.session AND NOT s.is_drained);
    DELETE FROM {schema}.unique_key u WHERE u.valid_until <= now;
    available := available - {schema}.advance_retention_1('completed', now - p_completed, available);
    UPDATE {schema}.horizon r SET finished = c.finished, seq = c.seq FROM {schema}.horizon c  -- results go with it
    WHERE r.what = 'result' AND c.what = 'completed' AND (c.finished, c.seq) > (r.finished, r.seq);
    FOR one IN
        SELECT d.seq FROM {schema}.dead_letter d WHERE d.finished < now - p_failed
        ORDER BY d.finished, d.seq LIMIT available FOR UPDATE SKIP LOCKED
    LOOP
        DELETE FROM {schema}.dead_letter d WHERE d.seq = one.seq;
        DELETE FROM {schema}.job j WHERE j.seq = one.seq;
        PERFORM {schema}.drop_attempt_state_1(ARRAY[one.seq], 3::int2);
        available := available - 1;
    END LOOP;
    IF p_most IS NOT NULL THEN
        available := available - {schema}.prune_excess_1(p_most, available);
    END IF;
    available := available - {schema}.advance_retention_1('result', now - p_results, available);
    PERFORM {schema}.count_new_finished_1(now, 20000);
    DELETE FROM {schema}.finished_job_default d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM {schema}.finished_job_default o, {schema}.horizon h
        WHERE h.what = 'completed' AND o.finished < h.finished LIMIT 10000));
    DELETE FROM {schema}.result_default d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM {schema}.result_default o, {schema}.horizon h
        WHERE h.what = 'result' AND o.finished < h.finished LIMIT 10000));
    RETURN p_limit - available;
END $$;

-- name: advance_retention
-- Forget what ended before a moment, oldest first, by moving a horizon; whole days that lie behind it
-- are dropped later.
-- Inputs: `completed` or `result`; the moment (NULL: nothing); at most so many
-- Result: how many
-- Locks: the row of the horizon
-- Atomic: one transaction; readers look beyond the horizon only. It goes forward in growing steps, as
--   history has no index that is in this order
CREATE OR REPLACE FUNCTION {schema}.advance_retention_1(p_what text, p_before int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    one record;
    edge int8;
    step int8 := 10000;
    available int4 := p_limit;
BEGIN
    SELECT * INTO h FROM {schema}.horizon WHERE what = p_what FOR UPDATE;
    IF p_before IS NULL OR p_limit <= 0 OR (p_before, 0) <= (h.finished, h.seq) THEN
        RETURN 0;
    END IF;
    IF h.finished < 0 THEN
        h.finished := coalesce(CASE p_what
            WHEN 'completed' THEN (SELECT min(d.finished) FROM {schema}.finished_job d WHERE d.finished < p_before)
            ELSE (SELECT min(d.finished) FROM {schema}.result d WHERE d.finished < p_before) END, p_before);
        h.seq := 0;
    END IF;
    LOOP
        edge := LEAST(p_before, h.finished + step);
        SELECT * INTO one FROM {schema}.find_finished_1(p_what, h.finished, h.seq, edge, available);
        available := available - one.number;
        h.finished := CASE WHEN available > 0 THEN edge ELSE one.finished END;
        h.seq := CASE WHEN available > 0 THEN 0 ELSE one.seq END;
        EXIT WHEN available = 0 OR edge >= p_before;
        step := 2 * step;
    END LOOP;
    UPDATE {schema}.horizon SET finished = h.finished, seq = h.seq WHERE what = p_what;
    RETURN p_limit - available;
END $$;

-- name: find_finished
-- What ended first behind a place.
-- Inputs: `completed` or `result`; the place; the moment before which it ended; at most so many
-- Result: how many, and the place of the last of them
CREATE OR REPLACE FUNCTION {schema}.find_finished_1(
    p_what text, p_finished int8, p_seq int8, p_before int8, p_most int4
) RETURNS TABLE (number int4, finished int8, seq int8)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off AS $$
BEGIN
    IF p_what = 'completed' THEN
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished),
            (array_agg(d.seq ORDER BY d.finished DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished, d.seq FROM {schema}.finished_job d
            WHERE d.finished >= p_finished AND d.finished < p_before
                AND (d.finished, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished, d.seq LIMIT p_most
        ) d;
    ELSE
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished),
            (array_agg(d.seq ORDER BY d.finished DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished, d.seq FROM {schema}.result d
            WHERE d.finished >= p_finished AND d.finished < p_before
                AND (d.finished, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished, d.seq LIMIT p_most
        ) d;
    END IF;
END $$;

-- name: prune_excess
-- Forget the completed and cancelled jobs that ended first, where more are kept than may be.
-- Inputs: how many may be kept; at most so many are forgotten
-- Result: how many were
-- Locks: the turn of `count_new_finished_1`, shared; the rows it deletes
CREATE OR REPLACE FUNCTION {schema}.prune_excess_1(p_most int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    kept int8;
    pruned int4;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    SELECT * INTO h FROM {schema}.horizon WHERE what = 'completed';
    SELECT sum(e.number) INTO kept FROM {schema}.count_finished_1(NULL) e;
    IF kept <= p_most OR p_limit <= 0 THEN
        RETURN 0;
    END IF;
    WITH old AS (
        DELETE FROM {schema}.finished_job d USING (
            SELECT o.finished, o.seq FROM {schema}.finished_job o
            WHERE o.finished >= h.finished AND (o.finished, o.seq) > (h.finished, h.seq)
            ORDER BY o.finished, o.seq LIMIT LEAST(p_limit, kept - p_most)
        ) o WHERE d.finished = o.finished AND d.seq = o.seq RETURNING d.seq, d.finished, d.lane, d.state
    ), results AS (
        DELETE FROM {schema}.result r USING old o WHERE r.seq = o.seq AND r.finished = o.finished
    )
    SELECT count(*), count({schema}.uncount_finished_1(old.finished, old.lane, old.state)) INTO pruned, kept FROM old;
    RETURN pruned;
END $$;

-- name: count_new_finished
-- Count once what ended since the last time, so that `count_by_state_1` need not count all that is kept.
-- Inputs: the time; fewer than so many are left to the next time
-- Result: how many were counted; looks each half a minute, whoever calls how often
-- Locks: a turn of its own, which deletions of history share; who does not get it does nothing
-- Atomic: of the caller's transaction. What ended before a moment is counted when every transaction
--   that began up to a minute after it is over: then nothing can come to it any more. So a clock that is set
--   back by less does no harm
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
        SELECT GREATEST(max(t.upto), (SELECT h.finished FROM {schema}.horizon h WHERE h.what = 'completed'))
        INTO first FROM {schema}.finished_count t;
        WITH new AS (
            SELECT d.lane, d.state, count(*) AS number FROM {schema}.finished_job d, {schema}.horizon h
            WHERE h.what = 'completed' AND d.finished >= first AND d.finished < next.upto
                AND (d.finished, d.seq) > (h.finished, h.seq) GROUP BY d.lane, d.state
        ), i AS (
            INSERT INTO {schema}.finished_count (since, upto, lane, state, number)
            SELECT first, next.upto, new.lane, new.state, new.number FROM new
            WHERE (SELECT sum(number) FROM new) >= p_least
        )
        SELECT coalesce(sum(number), 0) INTO counted FROM new;
    ELSIF next.xid < 9223372036854775807 THEN
        RETURN 0;
    END IF;
    DELETE FROM {schema}.finished_count t USING {schema}.horizon h WHERE h.what = 'completed' AND t.upto <= h.finished;
    UPDATE {schema}.count_cursor SET upto = p_now - 60000000,
        xid = CAST(CAST(pg_current_xact_id() AS text) AS int8);
    RETURN CASE WHEN counted >= p_least THEN counted ELSE 0 END;
END $$;

-- name: uncount_finished
-- Take a deleted record of history out of what was counted.
-- Inputs: when it ended, its lane and state
-- Locks: the row of the count. The caller shares the turn of `count_new_finished_1` since before it deleted, so
--   that no record is counted while it is deleted
CREATE OR REPLACE FUNCTION {schema}.uncount_finished_1(p_finished int8, p_lane int4, p_state int2) RETURNS void
LANGUAGE sql AS $$
    UPDATE {schema}.finished_count SET number = number - 1
    WHERE upto > p_finished AND since <= p_finished AND lane = p_lane AND state = p_state
$$;

-- name: count_finished
-- How many completed and cancelled jobs are kept.
-- Inputs: the lanes, NULL for all
-- Result: rows of state and number, several for one state
-- Atomic: one statement. What `count_new_finished_1` counted is not counted again, but for that part of the horizon
--   lies in
CREATE OR REPLACE FUNCTION {schema}.count_finished_1(p_lanes int4[]) RETURNS TABLE (state int2, number int8)
LANGUAGE sql STABLE SET enable_seqscan TO off SET jit TO off AS $$
    WITH h AS (SELECT finished, seq FROM {schema}.horizon WHERE what = 'completed'),
    e AS (
        SELECT coalesce(max(t.upto) FILTER (
                WHERE (t.since, 0) < (h.finished, h.seq) AND t.upto > h.finished
            ), h.finished) AS part, GREATEST(max(t.upto), h.finished) AS last
        FROM h LEFT JOIN {schema}.finished_count t ON true GROUP BY h.finished
    )
    SELECT t.state, CAST(sum(t.number) AS int8) FROM {schema}.finished_count t
    WHERE (t.since, 0) >= (SELECT finished, seq FROM h) AND (p_lanes IS NULL OR t.lane = ANY (p_lanes)) GROUP BY t.state
    UNION ALL
    SELECT d.state, count(*) FROM {schema}.finished_job d
    WHERE d.finished >= (SELECT finished FROM h) AND d.finished < (SELECT part FROM e)
        AND (d.finished > (SELECT finished FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
    UNION ALL
    SELECT d.state, count(*) FROM {schema}.finished_job d
    WHERE d.finished >= (SELECT last FROM e)
        AND (d.finished > (SELECT finished FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
$$;

-- name: maintain_partitions
-- Make the partitions of today and the next days, and drop those of days that are forgotten.
-- Inputs: none; the server's own clock says which day it is
-- Result: how many were made and dropped
-- Locks: a turn of its own, for who does not get it does nothing; to make one, the partition of all
--   other days, which is empty as a rule; to drop one, the whole table, in ACCESS EXCLUSIVE. Each is
--   waited for 200 ms at most, and attempt_status again the next time
-- Atomic: each partition is made or dropped whole. Runs with the rights of who made the tables, so
--   that a role that may make none is enough for workers
CREATE OR REPLACE FUNCTION {schema}.maintain_partitions_1() RETURNS int4
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog, pg_temp
SET lock_timeout TO '200ms' AS $$
DECLARE
    changed int4 := 0;
    ours regclass;
    day date;
    one record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.maintain_partitions_1', 7042)) THEN
        RETURN 0;
    END IF;
    FOREACH ours IN ARRAY ARRAY[CAST('{schema}.finished_job' AS regclass), CAST('{schema}.result' AS regclass)] LOOP
        FOR ahead IN 0..3 LOOP
            day := CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date) + ahead;
            changed := changed + {schema}.create_partition_1(ours, day);
        END LOOP;
    END LOOP;
    FOR one IN
        SELECT c.oid, c.relname, n.nspname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN {schema}.horizon h ON i.inhparent = CASE h.what
            WHEN 'completed' THEN CAST('{schema}.finished_job' AS regclass) ELSE CAST('{schema}.result' AS regclass) END
        WHERE c.relname ~ '_d[0-9]{8}$'
            AND extract(epoch FROM to_date(right(c.relname, 8), 'YYYYMMDD') + 1) * 1000000 < h.finished
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %I.%I', one.nspname, one.relname);
            changed := changed + 1;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN changed;
END $$;

-- name: create_partition
-- Make the partition of a day, unless it is there.
-- Inputs: the partitioned table; the day
-- Result: 1 when it was made, else 0
-- Locks: the partition of all other days; 200 ms at most, as the caller has it
-- Atomic: made whole and then attached. Where rows of that day lie among the others already, they
--   stay there
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
    RETURN 1;
EXCEPTION WHEN lock_not_available OR check_violation OR duplicate_table THEN
    RETURN 0;
END $$;
