-- Limits by key: decide which candidates have room, park the others, count leased jobs for their keys, and return parked
-- jobs to their lanes.
--
-- Locks: the rows of `keyed_limit` of a limit guard all its keys. They are locked by limit and job name, after concurrency
-- limits and rate limits (`limits.sql`). Only who holds them changes `limit_key` and parks jobs of that limit.
-- A job is in `ready` or in `parked`, never in both.
--
-- The turn of a key: when a key gets room, the first job of each queue and name that is parked for it returns to `ready`. If the
-- exchange that considers it finds another of its keys without room, it parks the job for that key, and the next job that is
-- parked for the first key has the turn. One exchange parks up to MAX_PARKED jobs, also of those that it moves in this way.

-- name: set_keyed_limits
-- Set the limits by key of job names. If those of a name change, exchanges consider its parked jobs again
-- (`unpark_changed_1`). The limit of a queue that a name gets or loses counts the running jobs of the name, or counts them no more.
-- Inputs: the time; the job names; a JSON object: job name -> [[limit, concurrency, interval, burst, cost], ...] by limit
-- Locks: if anything changes, the table `keyed_limit` in EXCLUSIVE, so that no exchange is in the middle of a decision
CREATE OR REPLACE FUNCTION {schema}.set_keyed_limits_1(p_now int8, p_names text[], p_limits jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    job text;
    declared jsonb;
    is_locked bool := false;
    held text[];
    changed record;
BEGIN
    IF p_limits = '{}' AND NOT EXISTS (SELECT FROM {schema}.keyed_limit) THEN
        RETURN;
    END IF;
    FOREACH job IN ARRAY p_names LOOP
        declared := coalesce(p_limits -> job, '[]');
        CONTINUE WHEN declared = (
            SELECT coalesce(jsonb_agg(jsonb_build_array(k.limit_name, k.concurrency, k.interval, k.burst, k.cost)
                ORDER BY k.limit_name), '[]')
            FROM {schema}.keyed_limit k WHERE k.job_name = job
        );
        IF NOT is_locked THEN
            LOCK TABLE {schema}.keyed_limit IN EXCLUSIVE MODE;
            is_locked := true;
        END IF;
        held := ARRAY(SELECT k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = job AND starts_with(k.limit_name, 'queue:'));
        INSERT INTO {schema}.changed_limit AS c (job_name, limit_name)
        SELECT k.job_name, k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = job
        ON CONFLICT (job_name, limit_name) DO UPDATE
        SET key = excluded.key, queue = excluded.queue, name = excluded.name, rank = excluded.rank, due = excluded.due,
            seq = excluded.seq;
        DELETE FROM {schema}.keyed_limit k WHERE k.job_name = job AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(declared) d WHERE d ->> 0 = k.limit_name
        );
        INSERT INTO {schema}.keyed_limit (limit_name, job_name, concurrency, interval, burst, cost)
        SELECT d ->> 0, job, CAST(d ->> 1 AS int4), CAST(d ->> 2 AS int8), CAST(d ->> 3 AS int8), CAST(d ->> 4 AS int8)
        FROM jsonb_array_elements(declared) d
        ON CONFLICT (limit_name, job_name) DO UPDATE SET concurrency = excluded.concurrency,
            interval = excluded.interval, burst = excluded.burst, cost = excluded.cost;
        FOR changed IN
            SELECT coalesce(h.limit_name, k.limit_name) AS limit_name, h.limit_name IS NULL AS is_new
            FROM unnest(held) AS h (limit_name)
            FULL JOIN (
                SELECT k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = job AND starts_with(k.limit_name, 'queue:')
            ) k ON k.limit_name = h.limit_name
            WHERE h.limit_name IS NULL OR k.limit_name IS NULL
        LOOP
            PERFORM {schema}.count_in_queue_limit_1(job, changed.limit_name, changed.is_new);
        END LOOP;
    END LOOP;
END $$;

-- name: count_in_queue_limit
-- Count the running jobs of a name in the limit of a queue, or count them no more.
-- Inputs: the job name; the name of the limit; whether the jobs count
-- Locks: leases. The caller has locked `keyed_limit`, and `concurrency_limit` if the jobs count, so no exchange leases jobs.
CREATE OR REPLACE FUNCTION {schema}.count_in_queue_limit_1(p_job text, p_limit text, p_counts bool) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    key_number int8 := {schema}.get_or_create_key_1(p_limit, '');
    jobs int4;
BEGIN
    UPDATE {schema}.lease l SET key_numbers = CASE WHEN p_counts THEN l.key_numbers || key_number
        ELSE nullif(array_remove(l.key_numbers, key_number), '{}') END
    FROM {schema}.lane a
    WHERE a.id = l.lane AND a.name = p_job AND 'queue:' || a.queue = p_limit
        AND coalesce(key_number = ANY (l.key_numbers), false) <> p_counts;
    GET DIAGNOSTICS jobs = ROW_COUNT;
    UPDATE {schema}.limit_key u SET in_use = u.in_use + CASE WHEN p_counts THEN jobs ELSE -jobs END WHERE u.number = key_number;
END $$;

-- name: list_job_keys
-- List the keys of a job for which its name has limits, by the name of the limit. For the limit of its whole queue
-- (QUEUE_LIMIT in core/limits.py) each job has the key '', and the cost of the limit.
-- Inputs: the job name; the seq
-- Result: the key and its limit; `unit_time` is its interval (NULL: it has no rate); `cost` is that of the job, `declared_cost` that of the limit
CREATE OR REPLACE FUNCTION {schema}.list_job_keys_1(p_name text, p_seq int8) RETURNS TABLE (
    limit_name text, key text, concurrency int4, unit_time int8, burst int8, cost int8, declared_cost int8
)
LANGUAGE sql STABLE AS $$
    SELECT k.limit_name, k.key, coalesce(c.concurrency, k.concurrency), coalesce(c.interval, k.interval),
        coalesce(c.burst, k.burst), coalesce(k.own_cost, k.cost, 1), coalesce(k.cost, 1)
    FROM (  -- OFFSET 0 keeps the options from being read again for each column
        SELECT k.*, CASE WHEN NOT starts_with(k.limit_name, 'queue:') THEN o.keys ->> k.limit_name
                WHEN k.limit_name = 'queue:' || o.queue THEN '' END AS key,
            CASE WHEN NOT starts_with(k.limit_name, 'queue:') THEN CAST(o.cost AS int8) END AS own_cost
        FROM (
            SELECT read.options -> 'limit_keys' AS keys, read.options ->> 'cost' AS cost, read.queue
            FROM (
                SELECT CAST({schema}.replace_nul_1(j.options) AS jsonb) AS options, a.queue
                FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane WHERE j.seq = p_seq OFFSET 0
            ) read
            OFFSET 0
        ) o, {schema}.keyed_limit k
        WHERE k.job_name = p_name
        OFFSET 0
    ) k
    LEFT JOIN {schema}.limit_change c ON c.name = k.limit_name AND c.for_key AND c.key = k.key
    WHERE k.key IS NOT NULL
    ORDER BY k.limit_name
$$;

-- name: find_keyed_lanes
-- Find the lanes whose jobs may have keys.
-- Inputs: queues and names of the requested lanes
-- Result: one value for each lane, in their order
CREATE OR REPLACE FUNCTION {schema}.find_keyed_lanes_1(p_queues text[], p_names text[]) RETURNS bool[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT count(k.job_name) > 0 FROM unnest(p_queues, p_names) WITH ORDINALITY AS r (queue, name, place)
        LEFT JOIN {schema}.keyed_limit k ON k.job_name = r.name
            AND (NOT starts_with(k.limit_name, 'queue:') OR k.limit_name = 'queue:' || r.queue)
        GROUP BY r.place ORDER BY r.place
    );
END $$;

-- name: unpark
-- Return the first jobs of a queue and name that are parked for a key to `ready`, whether their other keys have room or not.
-- Inputs: the time; limit, key, queue and name; the maximum number of jobs
-- Result: the number of jobs
-- Locks: the rows of `parked`; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.unpark_1(
    p_now int8, p_limit text, p_key text, p_queue text, p_name text, p_most int4
) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    RETURN {schema}.unpark_seqs_1(p_now, ARRAY(
        SELECT p.seq FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
        ORDER BY p.rank, p.due, p.seq LIMIT p_most FOR UPDATE SKIP LOCKED
    ));
END $$;

-- name: find_full_key
-- Find the first key of a job that has no room for it beside the jobs that an exchange has planned.
-- Inputs: the time; name and seq of the job; the limit whose key is considered first; the numbers of the keys of the planned
--   jobs, and how far each job moves `spent_until`
-- Result: the limit and its key; when its rate allows the job (NULL: its maximum is reached); no row if all keys have room
CREATE OR REPLACE FUNCTION {schema}.find_full_key_1(
    p_now int8, p_name text, p_seq int8, p_first text, p_numbers int8[], p_units int8[]
) RETURNS TABLE (limit_name text, key text, opens_at int8)
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT f.limit_name, f.key, CASE WHEN NOT f.is_used_up THEN f.spent_until - f.span END
    FROM (
        SELECT k.limit_name, k.key, coalesce(k.concurrency <= coalesce(u.in_use, 0) + planned.jobs, false) AS is_used_up,
            CASE WHEN planned.units > 0 THEN GREATEST(u.spent_until, p_now) + planned.units
                ELSE coalesce(u.spent_until, 0) END AS spent_until,
            (k.burst - LEAST(k.cost, k.burst)) * k.unit_time AS span
        FROM {schema}.list_job_keys_1(p_name, p_seq) k
        LEFT JOIN {schema}.limit_key u ON u.key = k.key AND u.limit_name = k.limit_name
        CROSS JOIN LATERAL (
            SELECT count(*) AS jobs, CAST(sum(n.units) AS int8) AS units
            FROM unnest(p_numbers, p_units) AS n (number, units) WHERE n.number = u.number
        ) planned
    ) f
    WHERE f.is_used_up OR f.span < GREATEST(0, f.spent_until - p_now)
    ORDER BY f.limit_name <> p_first, f.limit_name LIMIT 1
$$;

-- name: consider_key_later
-- Let exchanges consider a key again a second later, if jobs of a queue and name are parked for it. Call it after another
-- transaction had locked these jobs: one of a caller may hold them for long.
-- Inputs: the time; limit, key, queue and name. The caller has locked the limit.
CREATE OR REPLACE FUNCTION {schema}.consider_key_later_1(
    p_now int8, p_limit text, p_key text, p_queue text, p_name text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.limit_key u SET opens_at = LEAST(u.opens_at, p_now + 1000000)
    WHERE u.limit_name = p_limit AND u.key = p_key AND EXISTS (
        SELECT FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
    );
END $$;

-- name: pass_turn
-- Return the first job of a queue and name that is parked for a key and has room for all its keys to `ready`. Those before it,
-- which have another key without room, are parked for that key.
-- Inputs: the time; limit, key, queue and name; the maximum number of jobs to park for other keys. After these, the next job returns
--   whether its keys have room or not, so that the next exchange continues there. Then as for `find_full_key_1`
-- Result: whether a job returned; the number of jobs that are parked for other keys
-- Locks: the rows of `parked`; rows that another transaction has locked are skipped. The caller has locked the limits of the name.
CREATE OR REPLACE FUNCTION {schema}.pass_turn_1(
    p_now int8, p_limit text, p_key text, p_queue text, p_name text, p_max_moved int4, p_numbers int8[], p_units int8[],
    OUT has_returned bool, OUT moved int4
) LANGUAGE plpgsql AS $$
DECLARE
    place record;
BEGIN
    has_returned := false;
    moved := 0;
    FOR place IN
        SELECT p.seq, f.limit_name, f.key, f.opens_at FROM (
            SELECT p.rank, p.due, p.seq FROM {schema}.parked p
            WHERE p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
            ORDER BY p.rank, p.due, p.seq LIMIT p_max_moved + 1 FOR UPDATE SKIP LOCKED
        ) p LEFT JOIN LATERAL {schema}.find_full_key_1(p_now, p_name, p.seq, p_limit, p_numbers, p_units) f ON true
        ORDER BY p.rank, p.due, p.seq
    LOOP
        IF place.limit_name IS NULL OR place.limit_name <> p_limit AND moved = p_max_moved THEN
            has_returned := {schema}.unpark_seqs_1(p_now, ARRAY[place.seq]) > 0;
            RETURN;
        END IF;
        IF place.opens_at IS NOT NULL THEN  -- the key was in use, so it is there
            UPDATE {schema}.limit_key u SET opens_at = LEAST(u.opens_at, place.opens_at)
            WHERE u.limit_name = place.limit_name AND u.key = place.key;
        END IF;
        IF place.limit_name = p_limit THEN  -- the key has no room for its first job
            RETURN;
        END IF;
        UPDATE {schema}.parked p SET limit_name = place.limit_name, key = place.key WHERE p.seq = place.seq;
        moved := moved + 1;
    END LOOP;
    PERFORM {schema}.consider_key_later_1(p_now, p_limit, p_key, p_queue, p_name);
END $$;

-- name: unpark_key
-- Return the first jobs of each queue and name that are parked for a key to `ready`.
-- Inputs: the time; limit and key; the maximum number of jobs of each queue and name. The caller has locked the limit.
-- Result: the queues to notify
CREATE OR REPLACE FUNCTION {schema}.unpark_key_1(p_now int8, p_limit text, p_key text, p_most int4) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    last_queue text COLLATE "C" := '';
    last_name text COLLATE "C" := '';
    returned int4;
    to_notify text[] := '{}';
BEGIN
    LOOP  -- read the first job of each queue and name, not all of them
        SELECT p.queue, p.name INTO last_queue, last_name FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND (p.queue, p.name) > (last_queue, last_name)
        ORDER BY p.queue, p.name LIMIT 1;
        EXIT WHEN NOT FOUND;
        returned := {schema}.unpark_1(p_now, p_limit, p_key, last_queue, last_name, p_most);
        IF returned > 0 THEN
            to_notify := to_notify || last_queue;
        END IF;
        IF returned < p_most THEN
            PERFORM {schema}.consider_key_later_1(p_now, p_limit, p_key, last_queue, last_name);
        END IF;
    END LOOP;
    RETURN to_notify;
END $$;

-- name: unpark_open
-- Return jobs of these names whose rate allows one now to `ready`. A key that has no rate is here because a caller's transaction
-- held its jobs: as many return as the key has places for.
-- Inputs: the time; the job names, whose limits are locked
CREATE OR REPLACE FUNCTION {schema}.unpark_open_1(p_now int8, p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    opened record;
BEGIN
    FOR opened IN
        UPDATE {schema}.limit_key o SET opens_at = NULL WHERE o.ctid = ANY (ARRAY(
            SELECT u.ctid FROM (
                SELECT u.ctid, u.limit_name FROM {schema}.limit_key u WHERE u.opens_at <= p_now ORDER BY u.opens_at OFFSET 0
            ) u WHERE EXISTS (
                SELECT FROM {schema}.keyed_limit k WHERE k.limit_name = u.limit_name AND k.job_name = ANY (p_names)
            )
        )) RETURNING o.limit_name, o.key, GREATEST(1, (
            SELECT max(coalesce(c.concurrency, k.concurrency)) - o.in_use
            FROM {schema}.keyed_limit k
            LEFT JOIN {schema}.limit_change c ON c.name = k.limit_name AND c.for_key AND c.key = o.key
            WHERE k.limit_name = o.limit_name AND coalesce(c.interval, k.interval) IS NULL
        )) AS most
    LOOP
        PERFORM {schema}.unpark_key_1(p_now, opened.limit_name, opened.key, opened.most);
    END LOOP;
END $$;

-- name: unpark_changed
-- Return parked jobs to `ready` after limits changed, up to MAX_RETURNED in core/keyed_limits.py.
-- Inputs: the time
-- Result: the queues to notify
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_1(p_now int8) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    rest int4 := 1000;
    returned record;
    to_notify text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM {schema}.changed_key) THEN
        SELECT * INTO returned FROM {schema}.unpark_changed_keys_1(p_now, rest);
        rest := rest - returned.moved;
        to_notify := returned.to_notify;
    END IF;
    IF rest > 0 THEN
        to_notify := to_notify || {schema}.unpark_changed_limits_1(p_now, rest);
    END IF;
    RETURN to_notify;
END $$;

-- name: unpark_changed_keys
-- Return parked jobs of keys whose maximum changed to `ready`, in their order.
-- Inputs: the time; the maximum number of jobs
-- Result: the number of jobs; the queues to notify
-- Locks: the rows of the changed keys, except those that another transaction has locked; then rows of `parked`. If one of
--   these is locked, the next call tries again.
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_keys_1(p_now int8, p_most int4, OUT moved int4, OUT to_notify text[])
LANGUAGE plpgsql AS $$
DECLARE
    changed {schema}.changed_key;
    seqs int8[];
    moved_here int4;
BEGIN
    moved := 0;
    to_notify := '{}';
    FOR changed IN SELECT * FROM {schema}.changed_key c ORDER BY c.limit_name, c.key, c.queue, c.name FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN moved >= p_most;
        seqs := ARRAY(
            SELECT p.seq FROM {schema}.parked p
            WHERE p.limit_name = changed.limit_name AND p.key = changed.key AND p.queue = changed.queue AND p.name = changed.name
            ORDER BY p.rank, p.due, p.seq LIMIT LEAST(changed.number, p_most - moved)
        );
        moved_here := {schema}.unpark_seqs_1(p_now, seqs);
        IF moved_here > 0 THEN
            to_notify := to_notify || changed.queue;
        END IF;
        moved := moved + moved_here;
        IF moved_here < changed.number AND (moved >= p_most OR moved_here < cardinality(seqs)) THEN
            UPDATE {schema}.changed_key c SET number = c.number - moved_here
            WHERE c.limit_name = changed.limit_name AND c.key = changed.key AND c.queue = changed.queue AND c.name = changed.name;
        ELSE
            DELETE FROM {schema}.changed_key c
            WHERE c.limit_name = changed.limit_name AND c.key = changed.key AND c.queue = changed.queue AND c.name = changed.name;
        END IF;
    END LOOP;
END $$;

-- name: find_changing
-- Find the requested lanes to which parked jobs still return.
-- Inputs: queues and names of the requested lanes
-- Result: one value for each lane, in their order; NULL: no jobs return to any of them
CREATE OR REPLACE FUNCTION {schema}.find_changing_1(p_queues text[], p_names text[]) RETURNS bool[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    changing bool[] := ARRAY(
        SELECT EXISTS (SELECT FROM {schema}.changed_limit c WHERE c.job_name = r.name)
            OR EXISTS (SELECT FROM {schema}.changed_key c WHERE c.queue = r.queue AND c.name = r.name)
        FROM unnest(p_queues, p_names) WITH ORDINALITY AS r (queue, name, place) ORDER BY r.place
    );
BEGIN
    RETURN CASE WHEN true = ANY (changing) THEN changing END;
END $$;

-- name: has_parked_before
-- Test whether a job that is parked for a key comes before another job of the same queue and name. While parked jobs return,
-- such a job waits behind it for the same key, so that no job overtakes a parked one.
-- Inputs: limit, key, queue and name; seq, due time and main lane of the other job
-- Result: whether there is one
CREATE OR REPLACE FUNCTION {schema}.has_parked_before_1(
    p_limit text, p_key text, p_queue text, p_name text, p_seq int8, p_due int8, p_lane int4
) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.lane a, {schema}.parked p
        WHERE a.id = p_lane AND p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
            AND (p.rank, p.due, p.seq) < (a.rank, p_due, p_seq)
    );
END $$;

-- name: unpark_changed_limits
-- Return parked jobs of names whose limits changed to `ready`. The jobs of a key return in their order, so the first of
-- them are never passed over.
-- Inputs: the time; the maximum number of jobs
-- Result: the queues to notify
-- Locks: the row of the changed limit, if no other transaction has locked it; then rows of `parked`. If one of these is
--   locked, the next call tries again.
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_limits_1(p_now int8, p_most int4) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    rest int4 := p_most;
    changed {schema}.changed_limit;
    place {schema}.parked;
    seqs int8[];
    queues text[];
    moved int4;
    found_count int4;
    to_notify text[] := '{}';
BEGIN
    LOOP
        SELECT * INTO changed FROM {schema}.changed_limit c ORDER BY c.job_name, c.limit_name LIMIT 1
        FOR UPDATE SKIP LOCKED;
        EXIT WHEN NOT FOUND;
        seqs := '{}';
        queues := '{}';
        found_count := 0;
        FOR place IN
            SELECT * FROM {schema}.parked p WHERE p.limit_name = changed.limit_name
                AND (p.key, p.queue, p.name, p.rank, p.due, p.seq)
                    > (changed.key, changed.queue, changed.name, changed.rank, changed.due, changed.seq)
            ORDER BY p.key, p.queue, p.name, p.rank, p.due, p.seq LIMIT rest
        LOOP
            found_count := found_count + 1;
            IF place.name = changed.job_name THEN
                seqs := seqs || place.seq;
                IF place.queue <> ALL (queues) THEN
                    queues := queues || place.queue;
                END IF;
            END IF;
        END LOOP;
        moved := {schema}.unpark_seqs_1(p_now, seqs);
        to_notify := to_notify || queues;
        EXIT WHEN moved < cardinality(seqs);
        IF found_count < rest THEN
            DELETE FROM {schema}.changed_limit c WHERE c.job_name = changed.job_name AND c.limit_name = changed.limit_name;
        ELSE
            UPDATE {schema}.changed_limit c SET key = place.key, queue = place.queue, name = place.name,
                rank = place.rank, due = place.due, seq = place.seq
            WHERE c.job_name = changed.job_name AND c.limit_name = changed.limit_name;
        END IF;
        rest := rest - found_count;
        EXIT WHEN rest <= 0;
    END LOOP;
    RETURN to_notify;
END $$;

-- name: unpark_seqs
-- Return parked jobs to `ready`.
-- Inputs: the time; seqs
-- Result: the number of jobs
-- Locks: the rows of `parked`; rows that another transaction has locked are skipped
-- Atomic: the rows are deleted last, so that the trigger of `ready` (`add_turn_1`) knows that the jobs were parked
CREATE OR REPLACE FUNCTION {schema}.unpark_seqs_1(p_now int8, p_seqs int8[]) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    place {schema}.parked;
    moved int8[] := '{}';
BEGIN
    FOR place IN SELECT * FROM {schema}.parked p WHERE p.seq = ANY (p_seqs) FOR UPDATE SKIP LOCKED LOOP
        PERFORM {schema}.make_waiting_1(GREATEST(p_now, place.due), place.seq, place.due, place.lane, place.attempt_status);
        moved := moved || place.seq;
    END LOOP;
    DELETE FROM {schema}.parked p WHERE p.seq = ANY (moved);
    RETURN cardinality(moved);
END $$;

-- name: release_keys
-- Stop counting leases that ended for their keys, and let the next parked jobs have their turn.
-- Inputs: the time; the numbers of the keys, one element for each lease and key (NULL: none)
-- Result: the queues to notify: those of parked jobs that return, and those whose limit was reached and has room now
-- An UPDATE that reads its values from arrays takes half as long as one that joins. `width_bucket` finds the place of a number.
CREATE OR REPLACE FUNCTION {schema}.release_keys_1(p_now int8, p_numbers int8[]) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    numbers int8[];
    jobs int4[];
    released record;
    to_notify text[] := '{}';
BEGIN
    IF p_numbers IS NULL THEN
        RETURN to_notify;
    END IF;
    SELECT array_agg(freed.number), array_agg(freed.jobs) INTO numbers, jobs FROM (
        SELECT n.number, CAST(count(*) AS int4) AS jobs FROM unnest(p_numbers) n (number) GROUP BY 1 ORDER BY 1
    ) freed;
    UPDATE {schema}.limit_key u SET in_use = u.in_use - jobs[width_bucket(u.number, numbers)] WHERE u.number = ANY (numbers);
    to_notify := ARRAY(
        SELECT substr(u.limit_name, 7) FROM {schema}.limit_key u
        WHERE u.number = ANY (numbers) AND starts_with(u.limit_name, 'queue:') AND EXISTS (
            SELECT FROM {schema}.keyed_limit k WHERE k.limit_name = u.limit_name
                AND k.concurrency > u.in_use AND k.concurrency <= u.in_use + jobs[width_bucket(u.number, numbers)]
        )
    );
    IF NOT EXISTS (SELECT FROM {schema}.parked) THEN
        RETURN to_notify;
    END IF;
    FOR released IN
        SELECT u.limit_name, u.key, jobs[width_bucket(u.number, numbers)] AS jobs FROM {schema}.limit_key u
        WHERE u.number = ANY (numbers)
            AND EXISTS (SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key OFFSET 0)
    LOOP
        to_notify := to_notify || {schema}.unpark_key_1(p_now, released.limit_name, released.key, released.jobs);
    END LOOP;
    RETURN to_notify;
END $$;

-- name: pass_turns
-- Let jobs that are parked for the keys of a job have its turn: the job was cancelled before a worker took it.
-- Inputs: the time; seq and lane of the job
-- Result: whether any job returned to `ready`
CREATE OR REPLACE FUNCTION {schema}.pass_turns_1(p_now int8, p_seq int8, p_lane int4) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    returned bool := false;
    own record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.parked) THEN
        RETURN false;
    END IF;
    FOR own IN
        SELECT k.limit_name, k.key, a.queue, a.name FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k
        WHERE a.id = p_lane
    LOOP
        returned := {schema}.unpark_1(p_now, own.limit_name, own.key, own.queue, own.name, 1) > 0 OR returned;
    END LOOP;
    RETURN returned;
END $$;

-- name: merge_keyed_lanes
-- Do the same as `merge_jobs_1`, and read the keys of the jobs and their uses.
-- Inputs: as for `merge_jobs_1`; the names of the requested lanes; for each open lane whether its name has limits by key
-- Result: one row for each job and key, in the order of jobs and limits; a job without a key has one row:
--   place, lane_index, due, seq, is_end, worst
--                                  as from `merge_jobs_1`
--   limit_name, key                NULL: the job has no key
--   key_index                      the same for the same key; between 1 and `rows`
--   rows                           the number of all rows
--   concurrency, unit_time, burst, cost
--                                  as from `list_job_keys_1`
--   number                         the number of the key; NULL: it has none
--   in_use, spent_until            the use of the key before the exchange
--   is_last_key                    no row of the same job follows
CREATE OR REPLACE FUNCTION {schema}.merge_keyed_lanes_1(
    p_now int8, p_ageing int8, p_ids int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[],
    p_low_water_marks int8[], p_chunks int4[], p_names text[], p_keyed bool[]
) RETURNS TABLE (
    place int8, lane_index int4, due int8, seq int8, is_end bool, limit_name text, key text, key_index int4, rows int4,
    concurrency int4, unit_time int8, burst int8, cost int8, number int8, in_use int4, spent_until int8, is_last_key bool,
    worst int8[]
)
LANGUAGE sql STABLE AS $$
    SELECT c.place, c.lane_index, c.due, c.seq, c.is_end, k.limit_name, k.key,
        CAST(dense_rank() OVER (ORDER BY k.limit_name, k.key) AS int4), CAST(count(*) OVER () AS int4),
        k.concurrency, k.unit_time, k.burst, k.cost, u.number, coalesce(u.in_use, 0), coalesce(u.spent_until, 0),
        lead(c.place) OVER (ORDER BY c.place, k.limit_name) IS DISTINCT FROM c.place, c.worst
    FROM {schema}.merge_jobs_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_chunks) c
    LEFT JOIN LATERAL {schema}.list_job_keys_1(
        p_names[p_request_indexes[c.lane_index]], CASE WHEN p_keyed[c.lane_index] THEN c.seq END
    ) k ON true
    LEFT JOIN {schema}.limit_key u ON u.limit_name = k.limit_name AND u.key = k.key
    ORDER BY c.place, k.limit_name
$$;

-- name: get_or_create_key
-- Return the number of a key of a limit. A key that has none gets one.
-- Inputs: the limit and its key
-- Result: the number
-- Locks: the caller has locked the limit
CREATE OR REPLACE FUNCTION {schema}.get_or_create_key_1(p_limit text, p_key text) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    found_number int8;
BEGIN
    LOOP
        SELECT u.number INTO found_number FROM {schema}.limit_key u WHERE u.key = p_key AND u.limit_name = p_limit;
        EXIT WHEN FOUND;
        INSERT INTO {schema}.limit_key (limit_name, key, in_use, spent_until) VALUES (p_limit, p_key, 0, 0)
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN found_number;
END $$;

-- name: plan_keyed_claims
-- Do the same as `plan_claims_1`, and park the candidates whose keys have no room.
-- Inputs: as for `plan_claims_1`, and the main lanes of the open lanes; the requested lanes to which parked jobs still return, as
--   from `find_changing_1`
-- Result:
--   closed      whether a requested lane is closed: others return to it, because a job was parked, or it has a job to park and
--               MAX_PARKED jobs are parked. No other job may overtake these, so the next exchange continues there. The plan
--               contains jobs of the other lanes. NULL: none is closed
--   seqs, dues, lanes, main_lanes
--               the planned jobs; only they may be leased, because another transaction may add jobs before them
--   positions   for each its position in the reply. The jobs are then ordered by seq. NULL: they are in the order of the merge
--   ctids       where their rows in `ready` are, if these are locked; NULL: they are not
--   key_starts, key_ends
--               for each planned job its keys in the next four: their first and last index (NULL: the job has no key)
--   key_seqs, key_numbers, units, spans
--               for each key of a planned job: the job, the number of the key, how far the job moves `spent_until` (NULL: no
--               rate), and how far `spent_until` may be ahead while a unit is available
-- Locks: the rows of `ready` that it parks; rows that another transaction has locked are skipped. The caller has locked
--   the limits of the names.
CREATE OR REPLACE FUNCTION {schema}.plan_keyed_claims_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[], p_available int4[], p_queues text[], p_names text[], p_caps int4[],
    p_changing bool[],
    OUT closed bool[],
    OUT seqs int8[], OUT dues int8[], OUT lanes int4[], OUT main_lanes int4[], OUT positions int4[], OUT ctids tid[],
    OUT key_starts int4[], OUT key_ends int4[], OUT key_seqs int8[], OUT key_numbers int8[], OUT units int8[], OUT spans int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    max_parked CONSTANT int4 := 1000;  -- MAX_PARKED in core/keyed_limits.py
    chunks int4[] := array_fill(LEAST(p_total, p_total / cardinality(p_ids) + 2), ARRAY[cardinality(p_ids)]);
    keyed bool[];
    is_keyed bool[];
    queue_indexes int4[];
    name_indexes int4[];
    queue_available int4[];
    name_available int4[];
    queue int4;
    name int4;
    request_index int4;
    incomplete int4;
    taken int4;
    parked_count int4 := 0;
    passed record;
    in_uses int4[];
    spents int8[];
    numbers int8[];
    candidate record;
    place int8;
    is_skipped bool;
    own_keys int4;
    key_indexes int4[];
    key_count int4;
    first_key int4;
    full_limit text;
    full_key text;
    opening int8;
    to_park int8[];
    park_dues int8[];
    park_lanes int4[];
    park_main_lanes int4[];
    park_limits text[];
    park_keys text[];
    openings int8[];
    planned record;
BEGIN
    IF array_remove(p_caps, NULL) = '{}' AND array_remove(p_available, NULL) = '{}' AND p_changing IS NULL THEN
        planned := {schema}.plan_open_keys_1(p_total, p_now, p_ageing, p_ids, p_main_lanes, p_request_indexes, p_ranks, p_levels,
            p_low_water_marks, p_queues, p_names);
        IF planned.has_room THEN
            seqs := planned.seqs;
            dues := planned.dues;
            lanes := planned.lanes;
            main_lanes := planned.main_lanes;
            positions := planned.positions;
            ctids := planned.ctids;
            key_starts := planned.key_starts;
            key_ends := planned.key_ends;
            key_seqs := planned.key_seqs;
            key_numbers := planned.key_numbers;
            units := planned.units;
            spans := planned.spans;
            RETURN;
        END IF;
    END IF;
    keyed := {schema}.find_keyed_lanes_1(p_queues, p_names);
    SELECT array_agg(array_position(p_queues, p_queues[requested.request_index]) ORDER BY requested.lane_index),
        array_agg(array_position(p_names, p_names[requested.request_index]) ORDER BY requested.lane_index)
    INTO queue_indexes, name_indexes
    FROM unnest(p_request_indexes) WITH ORDINALITY AS requested (request_index, lane_index);
    FOR i IN 1..cardinality(p_ids) LOOP
        is_keyed[i] := keyed[p_request_indexes[i]];
        IF is_keyed[i] THEN
            chunks[i] := p_total + 1;
        END IF;
    END LOOP;
    LOOP
        SELECT array_agg(coalesce(c, p_total)) INTO queue_available FROM unnest(p_caps) c;
        name_available := array_fill(p_total, ARRAY[cardinality(p_names)]);
        FOR i IN 1..cardinality(p_ids) LOOP
            IF p_available[i] IS NOT NULL THEN
                name_available[name_indexes[i]] := p_available[i];
            END IF;
        END LOOP;
        incomplete := NULL;
        taken := 0;
        place := 0;
        seqs := '{}';
        dues := '{}';
        lanes := '{}';
        main_lanes := '{}';
        key_starts := '{}';
        key_ends := '{}';
        key_seqs := '{}';
        key_numbers := '{}';
        units := '{}';
        spans := '{}';
        key_indexes := '{}';
        key_count := 0;
        in_uses := NULL;
        to_park := '{}';
        park_dues := '{}';
        park_lanes := '{}';
        park_main_lanes := '{}';
        park_limits := '{}';
        park_keys := '{}';
        openings := '{}';
        FOR candidate IN
            SELECT * FROM {schema}.merge_keyed_lanes_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels,
                p_low_water_marks, chunks, p_names, is_keyed)
        LOOP
            IF in_uses IS NULL THEN
                in_uses := array_fill(NULL::int4, ARRAY[candidate.rows]);
                spents := array_fill(NULL::int8, ARRAY[candidate.rows]);
                numbers := spents;
            END IF;
            IF candidate.place <> place THEN
                place := candidate.place;
                own_keys := 0;
                first_key := key_count + 1;
                full_limit := NULL;
                queue := queue_indexes[candidate.lane_index];
                name := name_indexes[candidate.lane_index];
                request_index := p_request_indexes[candidate.lane_index];
                is_skipped := queue_available[queue] <= 0 OR name_available[name] <= 0 OR closed[request_index] IS TRUE;
            END IF;
            CONTINUE WHEN is_skipped;
            IF candidate.key IS NOT NULL THEN
                own_keys := own_keys + 1;
                IF full_limit IS NULL THEN
                    IF in_uses[candidate.key_index] IS NULL THEN
                        in_uses[candidate.key_index] := candidate.in_use;
                        spents[candidate.key_index] := candidate.spent_until;
                        numbers[candidate.key_index] := candidate.number;
                    END IF;
                    IF candidate.concurrency <= in_uses[candidate.key_index]
                        OR p_changing IS NOT NULL AND p_changing[request_index] AND {schema}.has_parked_before_1(
                            candidate.limit_name, candidate.key, p_queues[request_index], p_names[request_index],
                            candidate.seq, candidate.due, p_main_lanes[candidate.lane_index])
                    THEN
                        full_limit := candidate.limit_name;
                        full_key := candidate.key;
                        opening := NULL;
                    ELSIF (candidate.burst - LEAST(candidate.cost, candidate.burst)) * candidate.unit_time
                        < GREATEST(0, spents[candidate.key_index] - p_now)
                    THEN
                        full_limit := candidate.limit_name;
                        full_key := candidate.key;
                        opening := spents[candidate.key_index]
                            - (candidate.burst - LEAST(candidate.cost, candidate.burst)) * candidate.unit_time;
                    ELSE
                        IF numbers[candidate.key_index] IS NULL THEN
                            numbers[candidate.key_index] := {schema}.get_or_create_key_1(candidate.limit_name, candidate.key);
                        END IF;
                        key_count := key_count + 1;
                        key_indexes[key_count] := candidate.key_index;
                        key_seqs[key_count] := candidate.seq;
                        key_numbers[key_count] := numbers[candidate.key_index];
                        units[key_count] := candidate.cost * candidate.unit_time;
                        spans[key_count] := (candidate.burst - 1) * candidate.unit_time;
                    END IF;
                END IF;
            END IF;
            CONTINUE WHEN NOT candidate.is_last_key;
            IF full_limit IS NULL THEN
                FOR i IN first_key..key_count LOOP
                    in_uses[key_indexes[i]] := in_uses[key_indexes[i]] + 1;
                    IF units[i] > 0 THEN
                        spents[key_indexes[i]] := GREATEST(spents[key_indexes[i]], p_now) + units[i];
                    END IF;
                END LOOP;
                queue_available[queue] := queue_available[queue] - 1;
                name_available[name] := name_available[name] - 1;
                taken := taken + 1;
                IF key_count >= first_key THEN
                    key_starts[taken] := first_key;
                    key_ends[taken] := key_count;
                END IF;
                seqs := seqs || candidate.seq;
                dues := dues || candidate.due;
                lanes := lanes || p_ids[candidate.lane_index];
                main_lanes := main_lanes || p_main_lanes[candidate.lane_index];
                EXIT WHEN taken = p_total;
            ELSIF parked_count + cardinality(to_park) >= max_parked THEN
                key_count := first_key - 1;
                closed[request_index] := true;
            ELSE
                key_count := first_key - 1;
                to_park := to_park || candidate.seq;
                park_dues := park_dues || candidate.due;
                park_lanes := park_lanes || p_ids[candidate.lane_index];
                park_main_lanes := park_main_lanes || p_main_lanes[candidate.lane_index];
                park_limits := park_limits || full_limit;
                park_keys := park_keys || full_key;
                openings := openings || opening;
                IF own_keys > 1 THEN  -- others may be parked for its other keys, also since a moment ago
                    parked_count := parked_count + {schema}.park_1(
                        to_park, park_dues, park_lanes, park_main_lanes, park_limits, park_keys, openings);
                    to_park := '{}';
                    park_dues := '{}';
                    park_lanes := '{}';
                    park_main_lanes := '{}';
                    park_limits := '{}';
                    park_keys := '{}';
                    openings := '{}';
                    passed := {schema}.pass_other_turns_1(
                        p_now, candidate.seq, p_main_lanes[candidate.lane_index], full_limit, max_parked - parked_count,
                        key_numbers[:key_count], units[:key_count]);
                    parked_count := parked_count + passed.moved;
                    IF passed.has_returned THEN
                        closed[request_index] := true;
                    END IF;
                END IF;
            END IF;
            incomplete := CASE WHEN candidate.is_end AND closed[request_index] IS NOT TRUE THEN candidate.lane_index END;
            EXIT WHEN incomplete IS NOT NULL;  -- the next job of this lane may come before those of others
        END LOOP;
        IF cardinality(to_park) > 0 THEN
            parked_count := parked_count + {schema}.park_1(
                to_park, park_dues, park_lanes, park_main_lanes, park_limits, park_keys, openings);
        END IF;
        EXIT WHEN taken = p_total OR incomplete IS NULL;
        chunks[incomplete] := LEAST(2 * chunks[incomplete], p_total + max_parked);
    END LOOP;
    key_seqs := key_seqs[:key_count];
    key_numbers := key_numbers[:key_count];
    units := units[:key_count];
    spans := spans[:key_count];
END $$;

-- name: plan_open_keys
-- Do the same as `plan_keyed_claims_1` where all keys of the first jobs have room: then no job is parked, and no decision
-- depends on an earlier one.
-- Inputs: as for `plan_keyed_claims_1`
-- Result: as of `plan_keyed_claims_1`
--   has_room    whether all keys are sure to have room; else the rest is not to be used
-- Locks: in a single lane, the rows of `ready` of the jobs; rows that another transaction has locked are skipped. Exchanges
--   that could take these jobs wait for the limits anyway.
CREATE OR REPLACE FUNCTION {schema}.plan_open_keys_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[], p_queues text[], p_names text[],
    OUT seqs int8[], OUT dues int8[], OUT lanes int4[], OUT main_lanes int4[], OUT positions int4[], OUT ctids tid[],
    OUT key_starts int4[], OUT key_ends int4[], OUT key_seqs int8[], OUT key_numbers int8[], OUT units int8[], OUT spans int8[],
    OUT has_room bool
) LANGUAGE plpgsql AS $$
DECLARE
    chunks int4[];
    incomplete int4[];
    limits record;
    new_limits text[];
    new_keys text[];
    place int4 := 1;
BEGIN
    IF cardinality(p_ids) = 1 THEN  -- the same as below, in fewer steps
        SELECT array_agg(r.ctid), array_agg(r.seq), array_agg(r.due) INTO ctids, seqs, dues FROM (
            SELECT * FROM (
                SELECT r.ctid, r.due, r.seq FROM {schema}.ready r WHERE r.lane = p_ids[1] AND r.due >= p_low_water_marks[1]
                ORDER BY r.due, r.seq LIMIT p_total FOR UPDATE SKIP LOCKED
            ) r ORDER BY r.seq OFFSET 0
        ) r;
        -- No row: another transaction has locked or taken them all.
        positions := array_fill(1, ARRAY[coalesce(cardinality(seqs), 0)]);
        lanes := array_fill(p_ids[1], ARRAY[coalesce(cardinality(seqs), 0)]);
        main_lanes := array_fill(p_main_lanes[1], ARRAY[coalesce(cardinality(seqs), 0)]);
    ELSE
        chunks := array_fill(LEAST(p_total, p_total / cardinality(p_ids) + 2), ARRAY[cardinality(p_ids)]);
        LOOP
            SELECT array_agg(m.seq), array_agg(m.due), array_agg(CAST(m.place AS int4)),
                array_agg(p_ids[m.lane_index]), array_agg(p_main_lanes[m.lane_index]),
                array_agg(m.lane_index) FILTER (WHERE m.is_end AND m.place < p_total)
            INTO seqs, dues, positions, lanes, main_lanes, incomplete
            FROM (
                SELECT * FROM (
                    SELECT * FROM {schema}.merge_jobs_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels,
                        p_low_water_marks, chunks) LIMIT p_total
                ) m ORDER BY m.seq OFFSET 0
            ) m;
            EXIT WHEN incomplete IS NULL;
            FOR i IN 1..cardinality(incomplete) LOOP
                chunks[incomplete[i]] := LEAST(2 * chunks[incomplete[i]], p_total + 1);
            END LOOP;
        END LOOP;
    END IF;
    has_room := seqs IS NOT NULL;
    IF NOT has_room THEN
        RETURN;
    END IF;
    SELECT array_agg(k.lane ORDER BY k.limit_name) AS lanes, array_agg(k.limit_name ORDER BY k.limit_name) AS names,
        array_agg(k.concurrency ORDER BY k.limit_name) AS concurrencies, array_agg(k.interval ORDER BY k.limit_name) AS intervals,
        array_agg(k.burst ORDER BY k.limit_name) AS bursts, array_agg(k.cost ORDER BY k.limit_name) AS costs,
        EXISTS (SELECT FROM {schema}.limit_change c WHERE c.for_key) AS any_changed
    INTO limits
    FROM (
        SELECT DISTINCT lane.main_lane AS lane, k.*
        FROM unnest(p_main_lanes, p_request_indexes) AS lane (main_lane, request_index)
        JOIN {schema}.keyed_limit k ON k.job_name = p_names[lane.request_index]
            AND (NOT starts_with(k.limit_name, 'queue:') OR k.limit_name = 'queue:' || p_queues[lane.request_index])
    ) k;
    IF limits.names IS NOT NULL THEN
        WITH job_key AS MATERIALIZED (
            SELECT c.seq, l.nth, u.number, coalesce(u.in_use, 0) AS in_use, coalesce(u.spent_until, 0) AS spent_until,
                coalesce(x.concurrency, l.concurrency) AS concurrency, coalesce(x.burst, l.burst) AS burst,
                coalesce(x.interval, l.interval) AS unit_time,
                CASE WHEN coalesce(x.interval, l.interval) IS NOT NULL
                    THEN coalesce(CASE WHEN NOT starts_with(l.limit_name, 'queue:') THEN CAST(c.options ->> 'cost' AS int8) END,
                        l.cost, 1) END AS cost,
                CASE WHEN u.number IS NULL THEN l.limit_name END AS new_limit, CASE WHEN u.number IS NULL THEN k.key END AS new_key
            FROM (  -- OFFSET 0 keeps the options from being read again for each limit
                SELECT j.seq, j.lane, CAST({schema}.replace_nul_1(j.options) AS jsonb) AS options
                FROM {schema}.job j WHERE j.seq = ANY (seqs) OFFSET 0
            ) c
            JOIN unnest(limits.lanes, limits.names, limits.concurrencies, limits.intervals, limits.bursts, limits.costs)
                WITH ORDINALITY AS l (lane, limit_name, concurrency, interval, burst, cost, nth) ON l.lane = c.lane
            CROSS JOIN LATERAL (
                SELECT CASE WHEN starts_with(l.limit_name, 'queue:') THEN ''
                    ELSE c.options -> 'limit_keys' ->> l.limit_name END AS key OFFSET 0
            ) k
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.limit_key u WHERE u.key = k.key AND u.limit_name = l.limit_name OFFSET 0
            ) u ON true
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.limit_change x
                WHERE limits.any_changed AND x.name = l.limit_name AND x.for_key AND x.key = k.key OFFSET 0
            ) x ON true
            WHERE k.key IS NOT NULL
        )
        SELECT array_agg(k.seq), array_agg(k.number), array_agg(k.cost * k.unit_time), array_agg((k.burst - 1) * k.unit_time),
            array_agg(k.new_limit), array_agg(k.new_key), (
                SELECT coalesce(bool_and(
                    (g.concurrency >= g.in_use + g.jobs) IS NOT FALSE AND (g.span >= g.ahead + g.units) IS NOT FALSE
                ), true)
                FROM (  -- costs and limits of job names may differ: assume the worst
                    SELECT min(u.concurrency) AS concurrency, min(u.in_use) AS in_use, count(*) AS jobs,
                        min((u.burst - LEAST(u.cost, u.burst)) * u.unit_time) AS span,
                        GREATEST(0, min(u.spent_until) - p_now) AS ahead,
                        sum(u.cost * u.unit_time) - min(u.cost * u.unit_time) AS units
                    FROM job_key u GROUP BY u.number, u.new_limit, u.new_key
                ) g
            )
        INTO key_seqs, key_numbers, units, spans, new_limits, new_keys, has_room
        FROM (SELECT * FROM job_key ORDER BY seq, nth OFFSET 0) k;
    END IF;
    IF NOT has_room OR key_seqs IS NULL THEN
        RETURN;
    END IF;
    IF array_position(key_numbers, NULL) IS NOT NULL THEN
        INSERT INTO {schema}.limit_key (limit_name, key, in_use, spent_until)
        SELECT DISTINCT n.limit_name, n.key, 0, 0 FROM unnest(new_limits, new_keys) AS n (limit_name, key) WHERE n.key IS NOT NULL
        ON CONFLICT DO NOTHING;
        key_numbers := ARRAY(
            SELECT coalesce(n.number, u.number)
            FROM unnest(key_numbers, new_limits, new_keys) WITH ORDINALITY AS n (number, limit_name, key, nth)
            LEFT JOIN LATERAL (
                SELECT u.number FROM {schema}.limit_key u
                WHERE n.number IS NULL AND u.key = n.key AND u.limit_name = n.limit_name OFFSET 0
            ) u ON true
            ORDER BY n.nth
        );
    END IF;
    IF key_seqs = seqs THEN  -- each job has one key
        key_starts := ARRAY(SELECT generate_series(1, cardinality(seqs)));
        key_ends := key_starts;
        RETURN;
    END IF;
    FOR i IN 1..cardinality(key_seqs) LOOP
        WHILE seqs[place] < key_seqs[i] LOOP
            place := place + 1;
        END LOOP;
        key_starts[place] := coalesce(key_starts[place], i);
        key_ends[place] := i;
    END LOOP;
END $$;

-- name: lease_planned_jobs
-- Lease the planned jobs to a session.
-- Inputs: the time; the session; its exchange and nonce; the jobs and their keys, as from `plan_keyed_claims_1`; for each the share
--   of its tenant and what it is charged (NULL: nothing, or nothing for all); the maximum number of bytes of all deliveries
--   (NULL: sizes are not checked)
-- Result:
--   leased         the number of leased jobs. Jobs beyond the maximum stay in `ready`, but the first job is always leased.
--   any_attempted  whether an attempt of one of them has ended before
-- Locks: the rows of `ready` that it deletes; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.lease_planned_jobs_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_seqs int8[], p_dues int8[], p_lanes int4[],
    p_main_lanes int4[], p_positions int4[], p_ctids tid[], p_key_starts int4[], p_key_ends int4[], p_key_numbers int8[],
    p_shares int4[], p_charges int8[], p_max_bytes int8, OUT leased int8, OUT any_attempted bool
) LANGUAGE plpgsql AS $$
DECLARE
    places int4[];  -- of the jobs in the arrays, in the order of their positions; NULL: all, in their order
BEGIN
    IF p_max_bytes IS NOT NULL THEN
        SELECT coalesce(array_agg(sized.place), '{}') INTO places FROM (
            SELECT u.place, row_number() OVER w AS nth, sum({schema}.get_delivery_size_1(j.payload, j.options)) OVER w AS bytes
            FROM (
                SELECT s.seq, CAST(s.place AS int4) AS place, coalesce(p_positions[s.place], s.place) AS position
                FROM unnest(p_seqs) WITH ORDINALITY AS s (seq, place)
            ) u, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = u.seq OFFSET 0) j
            WINDOW w AS (ORDER BY u.position, p_dues[u.place], u.seq ROWS UNBOUNDED PRECEDING)
        ) sized WHERE sized.bytes <= p_max_bytes OR sized.nth = 1;
    END IF;
    IF p_ctids IS NOT NULL THEN
        IF places IS NOT NULL THEN
            p_ctids := ARRAY(SELECT p_ctids[u.place] FROM unnest(places) WITH ORDINALITY AS u (place, nth) ORDER BY u.nth);
        END IF;
    ELSE
        places := coalesce(places, ARRAY(SELECT generate_series(1, cardinality(p_seqs))));
        SELECT array_agg(f.ctid), array_agg(f.place) INTO p_ctids, places
        FROM (
            SELECT r.ctid, u.place FROM unnest(places) AS u (place), LATERAL (
                SELECT r.ctid FROM {schema}.ready r
                WHERE r.lane = p_lanes[u.place] AND r.due = p_dues[u.place] AND r.seq = p_seqs[u.place]
                FOR UPDATE SKIP LOCKED
            ) r
        ) f;
    END IF;
    WITH taken AS (
        DELETE FROM {schema}.ready r USING (
            SELECT u.ctid, coalesce(u.place, CAST(u.nth AS int4)) AS place
            FROM unnest(p_ctids, places) WITH ORDINALITY AS u (ctid, place, nth) OFFSET 0
        ) u WHERE r.ctid = u.ctid
        RETURNING r.due, r.seq, r.attempt_status, u.place,
            CASE WHEN r.attempt_status > 0 THEN {schema}.get_attempt_state_1(r.seq) END AS attempts
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
            failures, lost, attempt_status,
            extra_flags, nonce, settled_token, share, charge, key_numbers)
        SELECT taken.seq, taken.due, p_now, p_number, p_session, p_main_lanes[taken.place],
            coalesce(p_positions[taken.place], taken.place), coalesce((taken.attempts).fence, 0) + 1,
            coalesce((taken.attempts).failures, 0), coalesce((taken.attempts).lost, 0), taken.attempt_status,
            coalesce((taken.attempts).extra_flags, 0::int2), p_nonce, (taken.attempts).settled_token,
            p_shares[taken.place], p_charges[taken.place],
            p_key_numbers[p_key_starts[taken.place]:p_key_ends[taken.place]]
        FROM taken
    )
    SELECT count(*), bool_or(taken.attempt_status > 0) INTO leased, any_attempted FROM taken;
END $$;

-- name: park
-- Move jobs from `ready` to `parked`, and note when the rates of their keys allow them.
-- Inputs: seqs, due times, lanes and main lanes of the jobs; limits and keys; when a rate allows each job (NULL: it has room)
-- Result: the number of jobs that were in `ready` and not locked
CREATE OR REPLACE FUNCTION {schema}.park_1(
    p_seqs int8[], p_dues int8[], p_lanes int4[], p_main_lanes int4[], p_limits text[], p_keys text[], p_openings int8[]
) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    moved_count int4;
BEGIN
    WITH moved AS (
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY (ARRAY(
            SELECT f.ctid FROM unnest(p_seqs, p_dues, p_lanes) AS c (seq, due, lane), LATERAL (
                SELECT r.ctid FROM {schema}.ready r WHERE r.lane = c.lane AND r.due = c.due AND r.seq = c.seq
                FOR UPDATE SKIP LOCKED
            ) f
        )) RETURNING r.due, r.seq, r.attempt_status
    )
    INSERT INTO {schema}.parked (limit_name, key, queue, name, rank, due, seq, lane, attempt_status)
    SELECT p_limits[n.at], p_keys[n.at], a.queue, a.name, a.rank, moved.due, moved.seq, a.id, moved.attempt_status
    FROM moved, LATERAL (SELECT array_position(p_seqs, moved.seq) AS at OFFSET 0) n, {schema}.lane a
    WHERE a.id = p_main_lanes[n.at];
    GET DIAGNOSTICS moved_count = ROW_COUNT;
    IF array_remove(p_openings, NULL) <> '{}' THEN
        UPDATE {schema}.limit_key u SET opens_at = LEAST(u.opens_at, opening.at)  -- the key was in use, so it is there
        FROM (
            SELECT o.limit_name, o.key, min(o.at) AS at FROM unnest(p_limits, p_keys, p_openings) AS o (limit_name, key, at)
            WHERE o.at IS NOT NULL GROUP BY 1, 2
        ) opening
        WHERE u.limit_name = opening.limit_name AND u.key = opening.key;
    END IF;
    RETURN moved_count;
END $$;

-- name: pass_other_turns
-- Let jobs of the same queue and name that are parked for the other keys of a parked job have its turn there. Keys without room
-- have no turn to pass.
-- Inputs: the time; seq and main lane of the job; the limit for which it is parked; the maximum number of jobs to park for other
--   keys; then as for `find_full_key_1`
-- Result: whether jobs returned to `ready`; the number of jobs that are parked for other keys
CREATE OR REPLACE FUNCTION {schema}.pass_other_turns_1(
    p_now int8, p_seq int8, p_lane int4, p_limit text, p_max_moved int4, p_numbers int8[], p_units int8[],
    OUT has_returned bool, OUT moved int4
) LANGUAGE plpgsql AS $$
DECLARE
    own record;
    passed record;
BEGIN
    has_returned := false;
    moved := 0;
    FOR own IN
        SELECT k.limit_name, k.key, a.queue, a.name FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k
        LEFT JOIN {schema}.limit_key u ON u.key = k.key AND u.limit_name = k.limit_name
        WHERE a.id = p_lane AND k.limit_name <> p_limit AND (k.concurrency <= coalesce(u.in_use, 0)) IS NOT TRUE
            AND EXISTS (
                SELECT FROM {schema}.parked p
                WHERE p.limit_name = k.limit_name AND p.key = k.key AND p.queue = a.queue AND p.name = a.name
            )
    LOOP
        passed := {schema}.pass_turn_1(
            p_now, own.limit_name, own.key, own.queue, own.name, GREATEST(0, p_max_moved - moved), p_numbers, p_units);
        has_returned := has_returned OR passed.has_returned;
        moved := moved + passed.moved;
    END LOOP;
END $$;

-- name: count_keys
-- Count the jobs that an exchange leased for their keys, and set when the next parked jobs have their turn.
-- Inputs: the time; the session; the number of the exchange; the keys of the planned jobs, as from `plan_keyed_claims_1`; whether
--   all of these jobs were leased
CREATE OR REPLACE FUNCTION {schema}.count_keys_1(
    p_now int8, p_session int4, p_number int8, p_seqs int8[], p_numbers int8[], p_units int8[], p_spans int8[], p_leased_all bool
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    numbers int8[];
    jobs int4[];
    units int8[];
    has_units bool;
BEGIN
    IF NOT p_leased_all THEN
        SELECT array_agg(k.number), array_agg(k.units), array_agg(k.span) INTO p_numbers, p_units, p_spans
        FROM unnest(p_seqs, p_numbers, p_units, p_spans) AS k (seq, number, units, span)
        WHERE EXISTS (
            SELECT FROM {schema}.lease l WHERE l.session = p_session AND l.seq = k.seq AND l.exchange_number = p_number OFFSET 0
        );
    END IF;
    SELECT array_agg(c.number), array_agg(c.jobs), array_agg(coalesce(c.units, 0)) INTO numbers, jobs, units FROM (
        SELECT k.number, CAST(count(*) AS int4) AS jobs, CAST(sum(k.units) AS int8) AS units
        FROM unnest(p_numbers, p_units) AS k (number, units) GROUP BY 1 ORDER BY 1
    ) c;
    has_units := array_remove(p_units, NULL) <> '{}';
    IF has_units THEN  -- as in `release_keys_1`
        UPDATE {schema}.limit_key u SET in_use = u.in_use + jobs[width_bucket(u.number, numbers)],
            spent_until = CASE WHEN units[width_bucket(u.number, numbers)] = 0 THEN u.spent_until
                ELSE GREATEST(u.spent_until, p_now) + units[width_bucket(u.number, numbers)] END
        WHERE u.number = ANY (numbers);
    ELSE
        UPDATE {schema}.limit_key u SET in_use = u.in_use + jobs[width_bucket(u.number, numbers)] WHERE u.number = ANY (numbers);
    END IF;
    IF has_units AND EXISTS (SELECT FROM {schema}.parked) THEN
        UPDATE {schema}.limit_key u SET opens_at = GREATEST(p_now, u.spent_until - c.span)
        FROM (
            SELECT k.number, min(k.span) AS span FROM unnest(p_numbers, p_spans) AS k (number, span)
            WHERE k.span IS NOT NULL GROUP BY 1 ORDER BY 1
        ) c
        WHERE u.number = c.number AND EXISTS (
            SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
                -- a job that this exchange parked for a maximum waits for no rate
                AND (u.opens_at IS NOT NULL OR p.xmin <> CAST(pg_current_xact_id() AS xid))
        );
    END IF;
END $$;

-- name: refund_keys
-- Return what a job that has not started took from the rates of its keys.
-- Inputs: the time; its lease
CREATE OR REPLACE FUNCTION {schema}.refund_keys_1(p_now int8, p_lease {schema}.lease) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_lease.key_numbers IS NULL THEN
        RETURN;
    END IF;
    UPDATE {schema}.limit_key u SET spent_until = GREATEST(
        u.spent_until - GREATEST(0, k.cost * k.unit_time - GREATEST(0, p_now - p_lease.leased_at)), p_now - 31622400000000)
    FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_lease.seq) k
    WHERE a.id = p_lease.lane AND k.unit_time IS NOT NULL AND u.limit_name = k.limit_name AND u.key = k.key
        AND u.number = ANY (p_lease.key_numbers);
END $$;

-- name: spend_key_units
-- Take units of the rates of a job's keys, or give some back.
-- Inputs: the time; lane and seq of the job; the units; negative: give back
CREATE OR REPLACE FUNCTION {schema}.spend_key_units_1(p_now int8, p_lane int4, p_seq int8, p_units int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.limit_key u SET spent_until = LEAST(GREATEST(
        CASE WHEN p_units > 0 THEN GREATEST(u.spent_until, p_now) ELSE u.spent_until END + p_units * k.unit_time,
        p_now - 31622400000000), p_now + 31622400000000)
    FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k
    WHERE a.id = p_lane AND k.unit_time IS NOT NULL AND u.limit_name = k.limit_name AND u.key = k.key;
END $$;

-- name: block_keys
-- Let the rates of a job's keys allow no job for some time.
-- Inputs: the time; lane and seq of the job; the delay in microseconds
-- Result: whether a key of the job has a rate
CREATE OR REPLACE FUNCTION {schema}.block_keys_1(p_now int8, p_lane int4, p_seq int8, p_delay int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.keyed_limit) THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.limit_key AS u (limit_name, key, in_use, spent_until)
    SELECT k.limit_name, k.key, 0, LEAST(p_now + 31622400000000,
        p_now + LEAST(p_delay, 31622400000000) + (k.burst - LEAST(k.declared_cost, k.burst)) * k.unit_time)
    FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k WHERE a.id = p_lane AND k.unit_time IS NOT NULL
    ON CONFLICT (limit_name, key) DO UPDATE SET spent_until = GREATEST(u.spent_until, excluded.spent_until);
    RETURN FOUND;
END $$;

-- name: list_key_uses
-- List the keys of limits that are in use or for which jobs wait.
-- Inputs: a job name and a seq: only the keys of this job (NULL: all keys); the maximum number of keys
-- Result: one row for each key, ordered by limit and key
CREATE OR REPLACE FUNCTION {schema}.list_key_uses_1(p_name text, p_seq int8, p_limit int4) RETURNS TABLE (
    limit_name text, key text, in_use int4, parked int8, opens_at int8
)
LANGUAGE sql STABLE ROWS 10 SET jit TO off AS $$
    SELECT * FROM (
        SELECT u.limit_name, u.key, u.in_use, (
            SELECT count(*) FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
        ) AS parked, u.opens_at
        FROM {schema}.limit_key u WHERE p_seq IS NULL OR EXISTS (
            SELECT FROM {schema}.list_job_keys_1(p_name, p_seq) k WHERE k.limit_name = u.limit_name AND k.key = u.key
        )
        UNION ALL
        SELECT p.limit_name, p.key, 0, count(*), NULL FROM {schema}.parked p
        WHERE NOT EXISTS (SELECT FROM {schema}.limit_key u WHERE u.limit_name = p.limit_name AND u.key = p.key)
            AND (p_seq IS NULL OR EXISTS (
                SELECT FROM {schema}.list_job_keys_1(p_name, p_seq) k WHERE k.limit_name = p.limit_name AND k.key = p.key
            ))
        GROUP BY 1, 2
    ) used WHERE used.in_use > 0 OR used.parked > 0 ORDER BY 1, 2 LIMIT p_limit
$$;

-- name: list_fullest_keys
-- List the fullest keys of each limit, with the sums of all its keys.
-- Inputs: a limit name (NULL: all); the maximum number of keys of each limit
-- Result: one row for each key, as from `list_key_uses_1`, with the number of keys, the running and the parked jobs of the
--   limit; ordered by limit, first the fullest key
CREATE OR REPLACE FUNCTION {schema}.list_fullest_keys_1(p_name text, p_most int4) RETURNS TABLE (
    limit_name text, key text, in_use int4, parked int8, opens_at int8, keys int8, all_in_use int8, all_parked int8
)
LANGUAGE sql STABLE AS $$
    SELECT r.limit_name, r.key, r.in_use, r.parked, r.opens_at, r.keys, r.all_in_use, r.all_parked FROM (
        SELECT used.*, row_number() OVER (PARTITION BY used.limit_name ORDER BY used.in_use + used.parked DESC, used.key)
            AS place, count(*) OVER named AS keys, sum(used.in_use) OVER named AS all_in_use,
            CAST(sum(used.parked) OVER named AS int8) AS all_parked
        FROM (
            SELECT coalesce(u.limit_name, p.limit_name) AS limit_name, coalesce(u.key, p.key) AS key,
                coalesce(u.in_use, 0) AS in_use, coalesce(p.jobs, 0) AS parked, u.opens_at
            FROM (SELECT * FROM {schema}.limit_key k WHERE p_name IS NULL OR k.limit_name = p_name) u
            FULL JOIN (
                SELECT k.limit_name, k.key, count(*) AS jobs FROM {schema}.parked k
                WHERE p_name IS NULL OR k.limit_name = p_name GROUP BY 1, 2
            ) p ON p.limit_name = u.limit_name AND p.key = u.key
        ) used
        WHERE used.in_use > 0 OR used.parked > 0
        WINDOW named AS (PARTITION BY used.limit_name)
    ) r WHERE r.place <= p_most ORDER BY r.limit_name, r.place
$$;

-- name: prune_limit_keys
-- Delete the keys that are not in use any more.
-- Inputs: the time or NULL
-- Locks: if there are any, all rows of `keyed_limit` in their order: an exchange may be about to count jobs for the number of a key
CREATE OR REPLACE FUNCTION {schema}.prune_limit_keys_1(p_now int8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_read_time_1(p_now);
BEGIN
    IF NOT EXISTS (
        SELECT FROM {schema}.limit_key u WHERE u.in_use = 0 AND u.opens_at IS NULL AND u.spent_until < now
    ) THEN
        RETURN;
    END IF;
    PERFORM FROM {schema}.keyed_limit ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    DELETE FROM {schema}.limit_key u WHERE u.in_use = 0 AND u.opens_at IS NULL AND u.spent_until < now AND NOT EXISTS (
        SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
    );
END $$;
