-- Queries: read jobs, counts, queues and sessions. They take no lock and write nothing.
--
-- `finished_job` has no index in the order of seq (only BRIN), so `find_jobs` reads ranges of seqs that grow in size. It
-- never examines more records than its budget.

-- name: get_jobs
-- Read the complete records of jobs.
-- Inputs: the time; the ids; how many bytes of each payload to read, 0: none
-- Result: one row for each job, newest first; `postgres/queries.py` decodes it
CREATE OR REPLACE FUNCTION {schema}.get_jobs_1(p_now int8, p_ids bytea[], p_bytes int4) RETURNS TABLE (
    seq int8, state text, id bytea, queue text, name text, rank int2, payload bytea, failures int4,
    lost int4, due int8, created_at int8, started_at int8, finished_at int8, reason text, cancel_requested bool,
    holder text, ended_by text, host text, options text, history_at int8[], history bytea[], fraction float8, message text,
    result bytea
)
LANGUAGE sql STABLE AS $$
    SELECT r.seq, {schema}.get_state_1(r.status, r.failures, r.due, p_now), r.id, a.queue, a.name, a.rank,
        CASE WHEN p_bytes > 0 THEN substr(r.payload, 1, p_bytes) END, r.failures, r.lost, r.due, r.created_at, r.started_at,
        r.finished_at, r.reason, r.cancel_requested, r.holder, r.ended_by,
        (SELECT s.host FROM {schema}.session s WHERE s.id = coalesce(r.holder, r.ended_by)), r.options,
        coalesce(r.history_at, (SELECT array_agg(e.occurred_at ORDER BY e.position)
            FROM {schema}.attempt_error e WHERE e.seq = r.seq AND r.extra_flags & 1 > 0)),
        coalesce(r.history, (SELECT array_agg(e.body ORDER BY e.position) FROM {schema}.attempt_error e
            WHERE e.seq = r.seq AND r.extra_flags & 1 > 0)),
        coalesce(r.fraction, p.fraction), coalesce(r.message, p.message),
        (SELECT s.body FROM {schema}.result s, {schema}.horizon h WHERE r.status = 'completed' AND s.seq = r.seq
            AND h.what = 'result' AND (s.finished_at, s.seq) > (h.finished_at, h.seq) LIMIT 1)
    FROM {schema}.job_record r JOIN {schema}.lane a ON a.id = r.lane
    LEFT JOIN {schema}.progress p ON p.seq = r.seq AND r.extra_flags & 2 > 0
    WHERE r.id = ANY (p_ids)
    ORDER BY r.seq DESC
$$;

-- name: find_jobs
-- Find the jobs that match a filter, newest first.
-- Inputs:
--   p_now                             the time
--   p_states                          the states; NULL: any
--   p_queue, p_name, p_reason, p_ids  queue, name, reason and ids; for each, NULL: any
--   p_created_from, p_created_to, p_finished_from, p_finished_to
--                                     the ranges of `created_at` and `finished_at`, without their ends; NULL: no bound
--   p_tenant, p_correlation_id        options, as JSON; NULL: any
--   p_tag                             an element of the option `tags`, as JSON; NULL: any
--   p_fingerprint                     the fingerprint of a dead letter; NULL: any
--   p_flow                            the option `flow` of a job that is counted, as JSON; NULL: any
--   p_min_failures                    the least number of failures; NULL: any
--   p_after                           only jobs with a smaller seq
--   p_limit                           the maximum number of jobs
--   p_budget                          the maximum number of records to examine
-- Result: one row for each job: seq, state and id. Then one row without an id: `examined` is the number of records
--   examined; `seq` is the last one examined if more records follow, else NULL.
-- Atomic: part of the caller's transaction
-- Records are examined one by one in the order of seq. They come from `dead_letter` or `lease` if only such jobs can
-- match, else from `job` and `finished_job`. The state of an unfinished job is looked up in four tables, so only if its lane and
-- options match; else its status is NULL. Of `finished_job`, a range of seqs is read and sorted at a time. Records before
-- the horizon count as examined, because they are read too.
CREATE OR REPLACE FUNCTION {schema}.find_jobs_1(
    p_now int8, p_states text[], p_queue text, p_name text, p_reason text, p_ids bytea[], p_created_from int8,
    p_created_to int8, p_finished_from int8, p_finished_to int8, p_tenant text, p_correlation_id text,
    p_tag text, p_fingerprint text, p_flow text, p_min_failures int4, p_after int8, p_limit int4, p_budget int4
) RETURNS TABLE (seq int8, state text, id bytea, examined int4)
LANGUAGE plpgsql STABLE
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    lanes int4[] := CASE WHEN p_queue IS NOT NULL OR p_name IS NOT NULL THEN ARRAY(
        SELECT a.id FROM {schema}.lane a WHERE a.queue = coalesce(p_queue, a.queue) AND a.name = coalesce(p_name, a.name)
    ) END;
    past_end int8 := LEAST(p_after, {schema}.get_newest_seq_1() + 1);
    finished CONSTANT text[] := '{completed,cancelled}';
    width int8 := 1000;
    finished_end int8;                  -- no job in `finished_job` is between here and `past_end`
    source text;
    candidates refcursor;
    one record;
    selected int4 := 0;
    number int4 := 0;
    last_seq int8;
    finished_read int4;
    total_read int4;
    matched bool;
    has_more bool := false;
BEGIN
    IF p_fingerprint IS NOT NULL THEN
        p_states := CASE WHEN p_states IS NULL OR 'failed' = ANY (p_states) THEN '{failed}' ELSE '{}' END;
    END IF;
    source := CASE WHEN p_ids IS NOT NULL THEN 'ids' WHEN p_states = '{failed}' THEN 'dead letters'
        WHEN p_states = '{processing}' THEN 'leases' WHEN NOT p_states && finished THEN 'job' ELSE 'all' END;
    <<ranges>>
    WHILE past_end > 0 AND p_states IS DISTINCT FROM '{}' LOOP
        CASE source
        WHEN 'ids' THEN
            OPEN candidates FOR SELECT r.*, r.status = ANY (finished) AS is_finished FROM {schema}.job_record r
            WHERE r.id = ANY (p_ids) AND r.seq < past_end ORDER BY r.seq DESC;
        WHEN 'dead letters' THEN
            OPEN candidates FOR SELECT d.seq, d.finished_at, d.reason, d.fingerprint, j.id, j.lane, j.options, j.created_at,
                'failed' AS status, p.failures, p.due, false AS is_finished
            FROM {schema}.dead_letter d, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = d.seq OFFSET 0) j,
                LATERAL (SELECT * FROM {schema}.attempt_state p WHERE p.seq = d.seq OFFSET 0) p
            WHERE d.seq < past_end ORDER BY d.seq DESC LIMIT p_budget::int8 + 1;
        WHEN 'leases' THEN
            OPEN candidates FOR SELECT l.seq, CAST(NULL AS int8) AS finished_at, CAST(NULL AS text) AS reason,
                CAST(NULL AS text) AS fingerprint, j.id, j.lane, j.options, j.created_at, 'processing' AS status, l.failures, l.due,
                false AS is_finished
            FROM (
                SELECT l.seq, l.failures, l.due FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number
                WHERE NOT s.is_drained AND l.seq < past_end ORDER BY l.seq DESC
            ) l, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = l.seq OFFSET 0) j
            ORDER BY l.seq DESC;
        WHEN 'job' THEN
            OPEN candidates FOR SELECT c.seq, false AS is_finished, c.id, c.lane, c.options, c.created_at,
                k.finished_at, k.reason, k.fingerprint, k.status, k.failures, k.due
            FROM (
                SELECT j.* FROM {schema}.job j WHERE j.seq < past_end ORDER BY j.seq DESC LIMIT p_budget::int8 + 1 - number
            ) c LEFT JOIN LATERAL (
                SELECT * FROM {schema}.job_record_live k
                WHERE k.seq = c.seq AND (lanes IS NULL OR c.lane = ANY (lanes))
                    AND (p_tenant IS NULL OR strpos(c.options, p_tenant) > 0)
                    AND (p_correlation_id IS NULL OR strpos(c.options, p_correlation_id) > 0)
                    AND (p_tag IS NULL OR strpos(c.options, p_tag) > 0)
                    AND (p_flow IS NULL OR strpos(c.options, p_flow) > 0)
                OFFSET 0
            ) k ON true
            ORDER BY c.seq DESC;
        ELSE
            OPEN candidates FOR SELECT c.seq, c.is_finished, c.id, c.lane, c.options, c.created_at,
                coalesce(c.finished_at, k.finished_at) AS finished_at, coalesce(c.reason, k.reason) AS reason, k.fingerprint,
                coalesce(k.status, CASE c.state WHEN 1 THEN 'completed' WHEN 3 THEN 'cancelled' END) AS status,
                coalesce(k.failures, c.failures) AS failures, coalesce(k.due, c.due) AS due
            FROM (
                SELECT * FROM (
                    SELECT j.seq, false AS is_finished, j.id, j.lane, j.options, j.created_at, CAST(NULL AS int8) AS finished_at,
                        CAST(NULL AS text) AS reason, CAST(NULL AS int2) AS state, 0 AS failures, j.due
                    FROM {schema}.job j
                    WHERE j.seq >= past_end - width AND j.seq < past_end AND (p_states IS NULL OR NOT p_states <@ finished)
                    UNION ALL
                    SELECT d.seq, true, d.id, d.lane, d.options, d.created_at, coalesce(d.ended_at, d.finished_at), d.reason,
                        CASE WHEN (d.finished_at, d.seq) > (h.finished_at, h.seq) THEN d.state END, coalesce(d.failures, 0),
                        coalesce(d.due, d.created_at)
                    FROM {schema}.finished_job d, {schema}.horizon h
                    WHERE d.seq >= past_end - width AND d.seq < past_end AND h.what = 'completed'
                ) u
                ORDER BY u.seq DESC LIMIT p_budget::int8 + 1 - number
            ) c LEFT JOIN LATERAL (
                SELECT * FROM {schema}.job_record_live k
                WHERE k.seq = c.seq AND NOT c.is_finished AND (lanes IS NULL OR c.lane = ANY (lanes))
                    AND (p_tenant IS NULL OR strpos(c.options, p_tenant) > 0)
                    AND (p_correlation_id IS NULL OR strpos(c.options, p_correlation_id) > 0)
                    AND (p_tag IS NULL OR strpos(c.options, p_tag) > 0)
                    AND (p_flow IS NULL OR strpos(c.options, p_flow) > 0)
                OFFSET 0
            ) k ON true
            ORDER BY c.seq DESC;
        END CASE;
        finished_read := 0;
        total_read := 0;
        LOOP
            FETCH candidates INTO one;
            EXIT WHEN NOT FOUND;
            state := CASE WHEN one.status IS NOT NULL THEN {schema}.get_state_1(one.status, one.failures, one.due, p_now) END;
            matched := state IS NOT NULL AND (p_states IS NULL OR state = ANY (p_states))
                AND (lanes IS NULL OR one.lane = ANY (lanes)) AND (p_reason IS NULL OR one.reason = p_reason)
                AND (p_created_from IS NULL OR one.created_at >= p_created_from)
                AND (p_created_to IS NULL OR one.created_at < p_created_to)
                AND (p_finished_from IS NULL OR one.finished_at >= p_finished_from)
                AND (p_finished_to IS NULL OR one.finished_at < p_finished_to)
                AND (p_fingerprint IS NULL OR one.fingerprint = p_fingerprint)
                AND (p_min_failures IS NULL OR one.failures >= p_min_failures)
                AND (p_tenant IS NULL
                    OR strpos(one.options, p_tenant) > 0 AND {schema}.get_option_1(one.options, 'tenant') = p_tenant)
                AND (p_correlation_id IS NULL OR strpos(one.options, p_correlation_id) > 0
                    AND {schema}.get_option_1(one.options, 'correlation_id') = p_correlation_id)
                AND (p_flow IS NULL
                    OR strpos(one.options, p_flow) > 0 AND {schema}.get_option_1(one.options, 'flow') = p_flow
                        AND {schema}.get_option_1(one.options, 'group') IS DISTINCT FROM '""')
                AND (p_tag IS NULL OR strpos(one.options, p_tag) > 0
                    AND strpos({schema}.get_option_1(one.options, 'tags'), p_tag) > 0);  -- a tag contains no quote
            IF number >= p_budget OR (matched AND selected >= p_limit) THEN
                has_more := true;
                EXIT ranges;
            END IF;
            number := number + 1;
            total_read := total_read + 1;
            last_seq := one.seq;
            IF one.is_finished THEN
                finished_read := finished_read + 1;
            END IF;
            IF matched THEN
                selected := selected + 1;
                seq := one.seq;
                id := one.id;
                RETURN NEXT;
            END IF;
        END LOOP;
        CLOSE candidates;
        EXIT WHEN source <> 'all';
        past_end := past_end - width;
        -- Read about as many records as the budget allows; the newest ones tell how dense they are.
        width := LEAST(4 * width, 100000, GREATEST(1000, (p_budget::int8 - number + 1) * width / GREATEST(total_read, 1)));
        IF finished_read = 0 AND (finished_end IS NULL OR past_end <= finished_end) THEN
            finished_end := {schema}.find_newest_finished_1(past_end);
            IF finished_end IS NULL THEN
                EXIT WHEN p_states <@ finished;
                source := 'job';
            ELSIF p_states <@ finished THEN
                past_end := finished_end;
                width := 1000;
            END IF;
        END IF;
    END LOOP;
    IF has_more THEN
        CLOSE candidates;
    END IF;
    seq := CASE WHEN has_more THEN last_seq END;
    state := NULL;
    id := NULL;
    examined := number;
    RETURN NEXT;
END $$;

-- name: find_newest_finished
-- Find about where the newest job in `finished_job` before a seq is.
-- Inputs: the seq
-- Result: the end of a range of 1000 seqs that contains that job; no newer job is between this end and the given seq. NULL:
--   there is no job before the seq.
-- BRIN finds the pages of a range, and no first row. So ranges grow until one contains a job, and shrink again. The cost
-- depends on the size of the gap, and hardly on the number of jobs.
CREATE OR REPLACE FUNCTION {schema}.find_newest_finished_1(p_before int8) RETURNS int8
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET enable_indexscan TO off SET jit TO off AS $$
DECLARE
    past_end int8 := p_before;
    width int8 := 1000;
    is_found bool := false;
BEGIN
    WHILE past_end > 0 LOOP
        IF EXISTS (SELECT FROM {schema}.finished_job d WHERE d.seq >= past_end - width AND d.seq < past_end) THEN
            IF width = 1000 THEN
                RETURN past_end;
            END IF;
            is_found := true;
            width := width / 4;
        ELSE
            past_end := past_end - width;
            IF NOT is_found THEN
                width := width * 4;
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- name: get_option
-- Read one option of a job. None of the options that are read this way contains a NUL.
-- Inputs: the options as JSON (NULL: all have their default); the name of the option
-- Result: its value as JSON; NULL: it has its default
CREATE OR REPLACE FUNCTION {schema}.get_option_1(p_options text, p_name text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CAST(CAST({schema}.replace_nul_1(p_options) AS json) -> p_name AS text)
$$;

-- name: group_failures
-- Group the dead letters that match a filter by their fingerprints, largest group first.
-- Inputs: the time; the filter as for `find_jobs_1`; the maximum number of groups; the maximum number of dead letters to
--   examine; the maximum number of names; times
-- Result: one row for each group:
--   fingerprint             the fingerprint
--   number                  the number of its jobs
--   first, last             when the earliest and the latest of them failed
--   names                   the job names, sorted, at most p_most_names
--   job_id, error           the id of the latest, and its last error (JSON)
--   counts                  the number of those that failed at or after each of the given times
--   Then one row without a fingerprint: `number` is the number of dead letters examined; `last` is NULL if none is left.
CREATE OR REPLACE FUNCTION {schema}.group_failures_1(
    p_now int8, p_states text[], p_queue text, p_name text, p_reason text, p_ids bytea[], p_created_from int8,
    p_created_to int8, p_finished_from int8, p_finished_to int8, p_tenant text, p_correlation_id text,
    p_tag text, p_fingerprint text, p_flow text, p_min_failures int4, p_limit int4, p_budget int4, p_most_names int4, p_since int8[]
) RETURNS TABLE (
    fingerprint text, number int8, first int8, last int8, names text[], job_id bytea, error bytea, counts int8[]
)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    status record;
BEGIN
    SELECT array_agg(f.seq) FILTER (WHERE f.id IS NOT NULL) AS seqs, max(f.examined) AS examined,
        min(f.seq) FILTER (WHERE f.id IS NULL) AS next_seq
    INTO status
    FROM {schema}.find_jobs_1(p_now, p_states, p_queue, p_name, p_reason, p_ids, p_created_from, p_created_to,
        p_finished_from, p_finished_to, p_tenant, p_correlation_id, p_tag, p_fingerprint, p_flow, p_min_failures,
        9223372036854775807, 2147483647, p_budget) f;
    RETURN QUERY
    SELECT g.fingerprint, g.number, g.first, g.last,
        ARRAY(SELECT DISTINCT a.name FROM {schema}.lane a WHERE a.id = ANY (g.lanes) ORDER BY a.name LIMIT p_most_names)::text[],
        g.latest, (SELECT e.body FROM {schema}.attempt_error e WHERE e.seq = g.latest_seq ORDER BY e.position DESC LIMIT 1),
        ARRAY(SELECT (SELECT count(*) FROM unnest(g.times) t WHERE t >= s.at) FROM unnest(p_since) WITH ORDINALITY s (at, place)
            ORDER BY s.place)
    FROM (
        SELECT d.fingerprint, count(*) AS number, min(d.finished_at) AS first, max(d.finished_at) AS last,
            array_agg(DISTINCT j.lane) AS lanes, array_agg(d.finished_at) AS times, (array_agg(j.id ORDER BY d.finished_at DESC, j.id DESC))[1] AS latest,
            (array_agg(d.seq ORDER BY d.finished_at DESC, j.id DESC))[1] AS latest_seq
        FROM {schema}.dead_letter d JOIN {schema}.job j ON j.seq = d.seq
        WHERE d.seq = ANY (status.seqs) GROUP BY d.fingerprint
    ) g
    ORDER BY g.number DESC, g.last DESC, g.fingerprint LIMIT p_limit;
    fingerprint := NULL;
    number := status.examined;
    last := status.next_seq;
    RETURN NEXT;
END $$;

-- name: get_newest_seq
-- Return the seq of the newest job.
-- Result: a seq; 0: there is no job. The job may belong to a transaction that has not committed.
-- Atomic: reads one number. It runs with the rights of the owner of the tables, because it reads a sequence.
CREATE OR REPLACE FUNCTION {schema}.get_newest_seq_1() RETURNS int8
LANGUAGE sql STABLE SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(pg_sequence_last_value(CAST(pg_get_serial_sequence('{schema}.job', 'seq') AS regclass)), 0)
$$;

-- name: count_by_state
-- Count the jobs in each state.
-- Inputs: the time; the queue (NULL: all queues); how many jobs are counted in each table (NULL: all)
-- Result: states, each with a number, and whether all jobs of the table are counted; a state may occur in several rows
-- The due jobs of a lane are looked up. Of the other tables, rows of all queues are examined.
CREATE OR REPLACE FUNCTION {schema}.count_by_state_1(p_now int8, p_queue text, p_budget int4)
RETURNS TABLE (state text, number int8, is_complete bool)
LANGUAGE sql STABLE SET jit TO off AS $$
    WITH lanes AS MATERIALIZED (SELECT a.id FROM {schema}.lane a WHERE p_queue IS NULL OR a.queue = p_queue),
    waiting AS MATERIALIZED (
        SELECT 1 AS place, CASE WHEN r.attempt_status = 2 THEN 'retrying' ELSE 'pending' END AS state, count(*) AS number,
            count(*) AS examined
        FROM {schema}.ready r WHERE p_budget IS NULL AND r.lane IN (SELECT id FROM lanes) GROUP BY 2
        UNION ALL
        SELECT 1, CASE WHEN r.attempt_status = 2 THEN 'retrying' ELSE 'pending' END, count(*), count(*)
        FROM (
            SELECT f.attempt_status FROM lanes a CROSS JOIN LATERAL (
                SELECT r.attempt_status FROM {schema}.ready r WHERE r.lane = a.id ORDER BY r.due, r.seq LIMIT p_budget
            ) f WHERE p_budget IS NOT NULL LIMIT p_budget
        ) r GROUP BY 2
        UNION ALL
        SELECT 2, CASE WHEN k.attempt_status = 2 THEN 'retrying' ELSE 'pending' END,
            count(*) FILTER (WHERE k.lane IN (SELECT id FROM lanes)), count(*)
        FROM (SELECT p.lane, p.attempt_status FROM {schema}.parked p LIMIT p_budget) k GROUP BY 2
        UNION ALL
        SELECT 3, CASE WHEN s.attempt_status = 2 THEN 'retrying' WHEN s.due > p_now THEN 'scheduled' ELSE 'pending' END,
            count(*) FILTER (WHERE s.lane IN (SELECT id FROM lanes)), count(*)
        FROM (SELECT t.lane, t.attempt_status, t.due FROM {schema}.scheduled t LIMIT p_budget) s GROUP BY 2
        UNION ALL
        SELECT 4, 'failed', count(*) FILTER (WHERE p_queue IS NULL OR EXISTS (
            SELECT FROM {schema}.job j WHERE j.seq = d.seq AND j.lane IN (SELECT id FROM lanes)
        )), count(*)
        FROM (SELECT e.seq FROM {schema}.dead_letter e LIMIT p_budget) d
        UNION ALL
        SELECT 5, 'suspended', count(*) FILTER (WHERE w.cancelled_at IS NULL AND w.lane IN (SELECT id FROM lanes)), count(*)
        FROM (SELECT d.lane, d.cancelled_at FROM {schema}.dependent d LIMIT p_budget) w
    ),
    whole AS (SELECT w.place, p_budget IS NULL OR sum(w.examined) < p_budget AS is_complete FROM waiting w GROUP BY w.place)
    SELECT w.state, w.number, h.is_complete FROM waiting w JOIN whole h ON h.place = w.place
    UNION ALL
    SELECT 'processing', count(*), true FROM {schema}.lease l WHERE l.lane IN (SELECT id FROM lanes)
    UNION ALL
    SELECT CASE e.state WHEN 1 THEN 'completed' ELSE 'cancelled' END, e.number, true
    FROM {schema}.count_finished_1(CASE WHEN p_queue IS NOT NULL THEN ARRAY(SELECT id FROM lanes) END) e
$$;

-- name: list_queues
-- List every lane that has an unfinished job, and every paused queue.
-- Inputs: the time; how many jobs are counted in each table (NULL: all)
-- Result:
--   queue, name     the lane; a NULL name says that the queue is paused
--   size            the number of jobs that are due and wait
--   scheduled       the number of jobs that are not due
--   processing      the number of leased jobs
--   age             microseconds since the earliest due time; NULL: no job is due
--   size_complete, scheduled_complete
--                   whether all of these jobs are counted
--   paused          whether this row says that the queue is paused
--   since, ends_at, paused_by, reason
--                   of a pause: its start, its end (NULL: when the queue is resumed), who paused the queue, and why
-- With a budget, the lanes share it for `ready`, and are read in the order of its index: the first row of a lane is the
-- oldest. Without one, tables are read from end to end.
CREATE OR REPLACE FUNCTION {schema}.list_queues_1(p_now int8, p_budget int4) RETURNS TABLE (
    queue text, name text, size int8, scheduled int8, processing int8, age int8, size_complete bool,
    scheduled_complete bool, paused bool, since int8, ends_at int8, paused_by text, reason text
)
LANGUAGE sql STABLE SET jit TO off AS $$
    WITH served AS MATERIALIZED (
        SELECT a.id, o.due AS oldest FROM {schema}.lane a, LATERAL (
            SELECT r.due FROM {schema}.ready r WHERE r.lane = a.id ORDER BY r.due, r.seq LIMIT 1
        ) o WHERE p_budget IS NOT NULL
    ),
    share AS MATERIALIZED (SELECT GREATEST(1, p_budget / GREATEST(1, count(*))) AS most FROM served),
    counted AS MATERIALIZED (
        SELECT s.id, s.oldest, (
            SELECT count(*) FROM (
                SELECT FROM {schema}.ready r WHERE r.lane = s.id ORDER BY r.due, r.seq LIMIT (SELECT most FROM share)
            ) c
        ) AS number
        FROM served s
    ),
    later AS MATERIALIZED (
        SELECT s.lane, count(*) FILTER (WHERE s.due <= p_now) AS due, count(*) FILTER (WHERE s.due > p_now) AS later,
            min(s.due) FILTER (WHERE s.due <= p_now) AS oldest
        FROM (
            SELECT s.lane, s.due FROM {schema}.scheduled s WHERE p_budget IS NULL
            UNION ALL
            SELECT b.lane, b.due FROM (
                SELECT s.lane, s.due FROM {schema}.scheduled s WHERE p_budget IS NOT NULL ORDER BY s.due, s.seq LIMIT p_budget
            ) b
        ) s GROUP BY s.lane
    ),
    held_back AS MATERIALIZED (
        SELECT k.lane, count(*) AS due, min(k.due) AS oldest
        FROM (SELECT p.lane, p.due FROM {schema}.parked p LIMIT p_budget) k GROUP BY k.lane
    ),
    whole AS MATERIALIZED (
        SELECT p_budget IS NULL OR (SELECT coalesce(sum(b.due), 0) FROM held_back b) < p_budget AS size,
            p_budget IS NULL OR (SELECT coalesce(sum(l.due + l.later), 0) FROM later l) < p_budget AS later
    ),
    unfinished AS (
        SELECT r.lane, count(*) AS due, 0::int8 AS later, 0::int8 AS held, min(r.due) AS oldest, true AS complete
        FROM {schema}.ready r WHERE p_budget IS NULL GROUP BY r.lane
        UNION ALL
        SELECT c.id, c.number, 0, 0, c.oldest, c.number < (SELECT most FROM share) FROM counted c
        UNION ALL
        SELECT b.lane, b.due, 0, 0, b.oldest, true FROM held_back b
        UNION ALL
        SELECT s.lane, s.due, s.later, 0, s.oldest, true FROM later s
        UNION ALL
        SELECT l.lane, 0, 0, count(*), NULL, true FROM {schema}.lease l GROUP BY l.lane
    )
    SELECT a.queue, a.name, CAST(sum(u.due) AS int8), CAST(sum(u.later) AS int8), CAST(sum(u.held) AS int8),
        p_now - min(u.oldest), bool_and(u.complete AND w.size), bool_and(w.later), false, CAST(NULL AS int8), CAST(NULL AS int8),
        CAST(NULL AS text), CAST(NULL AS text)
    FROM unfinished u CROSS JOIN whole w JOIN {schema}.lane a ON a.id = u.lane GROUP BY a.queue, a.name
    UNION ALL
    SELECT p.queue, NULL, 0, 0, 0, NULL, true, w.later, true, p.since, p.ends_at, p.paused_by, p.reason
    FROM {schema}.paused_queue p CROSS JOIN whole w WHERE p.ends_at IS NULL OR p.ends_at > p_now
$$;

-- name: list_sessions
-- List every session that has not ended, oldest first.
-- Inputs: the time by which sessions expire
-- Result:
--   id, description     the id, and the description as JSON
--   opened_at           when it was opened
--   expires_in          microseconds until it expires
--   has_left            whether it was closed while handlers still ran
--   running             the number of its leases
--   vitals, command     the latest vitals (JSON) and command; NULL: none
CREATE OR REPLACE FUNCTION {schema}.list_sessions_1(p_monotonic int8) RETURNS TABLE (
    id text, description text, opened_at int8, expires_in int8, has_left bool, running int8, vitals text, command text
)
LANGUAGE sql STABLE AS $$
    SELECT s.id, d.description, s.opened_at, s.expires_at - p_monotonic, s.left_at IS NOT NULL,
        (SELECT count(*) FROM {schema}.lease l WHERE l.session = s.number), s.vitals, s.command
    FROM {schema}.session s JOIN {schema}.session_description d ON d.session = s.number
    WHERE s.ended_at IS NULL AND NOT s.is_drained ORDER BY s.number
$$;

-- name: list_limit_holders
-- List the jobs that have counted longest in the limit of each job name with a maximum.
-- Inputs: a job name (NULL: all); the maximum number of jobs of each limit
-- Result: limit, id of the job, session, host and start of its attempt; by limit, longest first
CREATE OR REPLACE FUNCTION {schema}.list_limit_holders_1(p_name text, p_most int4) RETURNS TABLE (
    limit_name text, id bytea, session text, host text, started_at int8
)
LANGUAGE sql STABLE AS $$
    SELECT h.limit_name, j.id, h.session, h.host, h.leased_at FROM (
        SELECT r.limit_name, l.seq, l.leased_at, s.id AS session, s.host,
            row_number() OVER (PARTITION BY r.limit_name ORDER BY l.leased_at, l.seq) AS place
        FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number JOIN {schema}.lane a ON a.id = l.lane
        JOIN {schema}.limit_rule r ON r.limit_name = 'job:' || a.name AND r.job_name = a.name AND r.concurrency IS NOT NULL
        WHERE NOT s.is_drained AND (p_name IS NULL OR a.name = p_name)
    ) h JOIN {schema}.job j ON j.seq = h.seq WHERE h.place <= p_most ORDER BY h.limit_name, h.place
$$;

-- name: explain_job
-- Read what decides whether a job can run, besides its own record.
-- Inputs: the time; the time by which sessions expire; id, queue, name and options of the job
-- Result: one row:
--   since, ends_at, paused_by, pause_reason             the pause of its queue; NULL: it is not paused
--   key_holder                                          the id of another job that holds its unique key; NULL: none
--   open_ids, open_descriptions, open_opened_at, open_expires_in, open_has_left, open_running, open_vitals, open_commands
--                                                       the sessions, as from `list_sessions_1`; NULL: none
-- Atomic: the caller's statement reads the job and calls this function, so both see the same snapshot
CREATE OR REPLACE FUNCTION {schema}.explain_job_1(
    p_now int8, p_monotonic int8, p_id bytea, p_queue text, p_name text, p_options text
) RETURNS TABLE (
    since int8, ends_at int8, paused_by text, pause_reason text, key_holder bytea, open_ids text[], open_descriptions text[],
    open_opened_at int8[], open_expires_in int8[], open_has_left bool[], open_running int8[], open_vitals text[],
    open_commands text[]
)
LANGUAGE sql STABLE ROWS 1 SET jit TO off AS $$
    SELECT p.since, p.ends_at, p.paused_by, p.reason, (
        SELECT u.id FROM {schema}.unique_key u WHERE u.name = p_name AND u.id <> p_id AND u.seq <> 0
            AND u.key = CAST({schema}.get_option_1(p_options, 'unique_key') AS jsonb) #>> '{}'
            AND (u.valid_until IS NULL OR u.valid_until > p_now)
            AND (u.states IS NULL AND u.valid_until IS NOT NULL OR EXISTS (
                SELECT FROM {schema}.job_record r
                WHERE r.id = u.id AND CASE WHEN u.states IS NULL THEN r.status IN ('waiting', 'suspended', 'processing')
                    ELSE {schema}.get_state_1(r.status, r.failures, r.due, p_now) = ANY (u.states) END
            ))
    ), s.*
    FROM (
        SELECT array_agg(s.id), array_agg(s.description), array_agg(s.opened_at), array_agg(s.expires_in), array_agg(s.has_left),
            array_agg(s.running), array_agg(s.vitals), array_agg(s.command)
        FROM {schema}.list_sessions_1(p_monotonic) s
    ) s
    LEFT JOIN {schema}.paused_queue p ON p.queue = p_queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
$$;
