-- Queries: read jobs, counts, queues and sessions. They take no lock and write nothing.
--
-- `finished_job` has no index in the order of seq (only BRIN), so `find_jobs` reads ranges of seqs that grow in size.

-- name: get_jobs
-- Read the complete records of jobs.
-- Inputs: the time; the ids; whether payloads are included
-- Result: one row for each job, newest first; `postgres/queries.py` decodes it
CREATE OR REPLACE FUNCTION {schema}.get_jobs_1(p_now int8, p_ids bytea[], p_payloads bool) RETURNS TABLE (
    seq int8, code text, id bytea, queue text, name text, rank int2, payload bytea, failures int4,
    lost int4, due int8, created_at int8, started_at int8, finished_at int8, reason text, cancel_requested bool,
    holder text, options text, history_at int8[], history bytea[], fraction float8, message text,
    result bytea
)
LANGUAGE sql STABLE AS $$
    SELECT r.seq, {schema}.get_state_code_1(r.status, r.failures, r.due, p_now), r.id, a.queue, a.name, a.rank,
        CASE WHEN p_payloads THEN r.payload END, r.failures, r.lost, r.due, r.created_at, r.started_at,
        r.finished_at, r.reason, r.cancel_requested, r.holder, r.options,
        coalesce(r.history_at, (SELECT array_agg(e.occurred_at ORDER BY e.position)
            FROM {schema}.attempt_error e WHERE e.seq = r.seq AND r.extra_flags & 1 > 0)),
        coalesce(r.history, (SELECT array_agg(e.body ORDER BY e.position) FROM {schema}.attempt_error e
            WHERE e.seq = r.seq AND r.extra_flags & 1 > 0)),
        coalesce(r.fraction, p.fraction), coalesce(r.message, p.message),
        (SELECT s.body FROM {schema}.result s, {schema}.horizon h WHERE r.status = 'c' AND s.seq = r.seq
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
--   p_states                          codes of the states (P S R L C F X); NULL: any
--   p_queue, p_name, p_reason, p_ids  queue, name, reason and ids; for each, NULL: any
--   p_after                           only jobs with a smaller seq
--   p_limit                           the maximum number of jobs
-- Result: seqs, state codes and ids
-- Atomic: part of the caller's transaction
CREATE OR REPLACE FUNCTION {schema}.find_jobs_1(
    p_now int8, p_states text, p_queue text, p_name text, p_reason text, p_ids bytea[], p_after int8,
    p_limit int4
) RETURNS TABLE (seq int8, code text, id bytea)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    lanes int4[] := CASE WHEN p_queue IS NOT NULL OR p_name IS NOT NULL THEN ARRAY(
        SELECT a.id FROM {schema}.lane a WHERE a.queue = coalesce(p_queue, a.queue) AND a.name = coalesce(p_name, a.name)
    ) END;
    past_end int8 := LEAST(p_after, {schema}.get_newest_seq_1() + 1);
    low int8;
    width int8 := 1000;
    available int4 := p_limit;
    found int4;
BEGIN
    IF p_ids IS NOT NULL THEN
        RETURN QUERY SELECT r.seq, r.code, r.id FROM (
            SELECT k.*, {schema}.get_state_code_1(k.status, k.failures, k.due, p_now) AS code FROM {schema}.job_record k
            WHERE k.id = ANY (p_ids)
        ) r
        WHERE r.seq < p_after AND (p_states IS NULL OR strpos(p_states, r.code) > 0)
            AND (lanes IS NULL OR r.lane = ANY (lanes)) AND (p_reason IS NULL OR r.reason = p_reason)
        ORDER BY r.seq DESC LIMIT p_limit;
        RETURN;
    END IF;
    WHILE past_end > 0 AND available > 0 LOOP
        low := past_end - width;
        IF p_states = 'F' THEN
            RETURN QUERY SELECT d.seq, 'F', j.id FROM {schema}.dead_letter d JOIN {schema}.job j ON j.seq = d.seq
            WHERE d.seq < past_end AND (lanes IS NULL OR j.lane = ANY (lanes))
                AND (p_reason IS NULL OR d.reason = p_reason)
            ORDER BY d.seq DESC LIMIT available;
            RETURN;
        ELSIF p_states !~ '[CX]' THEN
            RETURN QUERY SELECT r.seq, r.code, r.id FROM (
                SELECT k.*, {schema}.get_state_code_1(k.status, k.failures, k.due, p_now) AS code
                    FROM {schema}.job_record_live k
                WHERE k.seq >= low AND k.seq < past_end
            ) r
            WHERE strpos(p_states, r.code) > 0 AND (lanes IS NULL OR r.lane = ANY (lanes))
                AND (p_reason IS NULL OR r.reason = p_reason)
            ORDER BY r.seq DESC LIMIT available;
        ELSE
            RETURN QUERY SELECT r.seq, r.code, r.id FROM (
                SELECT k.*, {schema}.get_state_code_1(k.status, k.failures, k.due, p_now) AS code
                    FROM {schema}.job_record k
                WHERE k.seq >= low AND k.seq < past_end
            ) r
            WHERE (p_states IS NULL OR strpos(p_states, r.code) > 0)
                AND (lanes IS NULL OR r.lane = ANY (lanes)) AND (p_reason IS NULL OR r.reason = p_reason)
            ORDER BY r.seq DESC LIMIT available;
        END IF;
        GET DIAGNOSTICS found = ROW_COUNT;
        available := available - found;
        past_end := low;
        width := LEAST(4 * width, 1000000);
    END LOOP;
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
-- Inputs: the time; the queue (NULL: all queues)
-- Result: state codes as from `get_state_code_1`, each with a number; a code may occur in several rows
CREATE OR REPLACE FUNCTION {schema}.count_by_state_1(p_now int8, p_queue text) RETURNS TABLE (code text, number int8)
LANGUAGE sql STABLE AS $$
    WITH lanes AS (SELECT a.id FROM {schema}.lane a WHERE p_queue IS NULL OR a.queue = p_queue)
    SELECT CASE WHEN r.attempt_status = 2 THEN 'R' ELSE 'P' END, count(*) FROM {schema}.ready r
    WHERE r.lane IN (SELECT id FROM lanes) GROUP BY 1
    UNION ALL
    SELECT CASE WHEN s.attempt_status = 2 THEN 'R' WHEN s.due > p_now THEN 'S' ELSE 'P' END, count(*)
    FROM {schema}.scheduled s WHERE s.lane IN (SELECT id FROM lanes) GROUP BY 1
    UNION ALL
    SELECT 'L', count(*) FROM {schema}.lease l WHERE l.lane IN (SELECT id FROM lanes)
    UNION ALL
    SELECT 'F', count(*) FROM {schema}.dead_letter d JOIN {schema}.job j ON j.seq = d.seq
    WHERE j.lane IN (SELECT id FROM lanes)
    UNION ALL
    SELECT CASE e.state WHEN 1 THEN 'C' ELSE 'X' END, e.number
    FROM {schema}.count_finished_1(CASE WHEN p_queue IS NOT NULL THEN ARRAY(SELECT id FROM lanes) END) e
$$;

-- name: list_queues
-- List every lane that has an unfinished job, and every paused queue.
-- Inputs: the time
-- Result:
--   queue, name     the lane; a NULL name says that the queue is paused
--   size            the number of jobs that are due and wait
--   scheduled       the number of jobs that are not due
--   processing      the number of leased jobs
--   age             microseconds since the earliest due time; NULL: no job is due
--   paused          whether this row says that the queue is paused
CREATE OR REPLACE FUNCTION {schema}.list_queues_2(p_now int8) RETURNS TABLE (
    queue text, name text, size int8, scheduled int8, processing int8, age int8, paused bool
)
LANGUAGE sql STABLE AS $$
    WITH unfinished AS (
        SELECT r.lane, count(*) AS due, 0::int8 AS later, 0::int8 AS held, min(r.due) AS oldest
        FROM {schema}.ready r GROUP BY r.lane
        UNION ALL
        SELECT s.lane, count(*) FILTER (WHERE s.due <= p_now), count(*) FILTER (WHERE s.due > p_now), 0,
            min(s.due) FILTER (WHERE s.due <= p_now)
        FROM {schema}.scheduled s GROUP BY s.lane
        UNION ALL
        SELECT l.lane, 0, 0, count(*), NULL FROM {schema}.lease l GROUP BY l.lane
    )
    SELECT a.queue, a.name, CAST(sum(u.due) AS int8), CAST(sum(u.later) AS int8), CAST(sum(u.held) AS int8),
        p_now - min(u.oldest), false
    FROM unfinished u JOIN {schema}.lane a ON a.id = u.lane GROUP BY a.queue, a.name
    UNION ALL
    SELECT p.queue, NULL, 0, 0, 0, NULL, true FROM {schema}.paused_queue p
$$;

-- name: list_sessions
-- List every session that has not ended, oldest first.
-- Inputs: the time by which sessions expire
-- Result:
--   id, description     the id, and the description as JSON
--   opened_at           when it was opened
--   life                microseconds until it expires
--   gone                whether it was closed while handlers still ran
--   running             the number of its leases
CREATE OR REPLACE FUNCTION {schema}.list_sessions_1(p_monotonic int8) RETURNS TABLE (
    id text, description text, opened_at int8, life int8, gone bool, running int8
)
LANGUAGE sql STABLE AS $$
    SELECT s.id, s.description, s.opened_at, s.expires_at - p_monotonic, s.left_at IS NOT NULL,
        (SELECT count(*) FROM {schema}.lease l WHERE l.session = s.number)
    FROM {schema}.session s WHERE s.ended_at IS NULL ORDER BY s.number
$$;
