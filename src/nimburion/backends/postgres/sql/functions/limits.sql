-- Limits: lock them, count what is leased and what ends, and return parked jobs to their lanes. Then what workers declare and
-- what operators change at run time: `concurrency_limit` and `rate_limit` (own limits of job names) and `keyed_limit` (all others)
-- hold what is in force. A change of one key stays in `limit_change`; `list_job_keys_1` reads it with the limits by key.
-- `core/rate_limits.py` explains the arithmetic of rate limits. `backends/planning` decides which jobs are parked.
--
-- Locks: first concurrency limits, then rate limits, both by name, then limits by key, by limit and job name. They are held until
-- the transaction ends. The rows of `keyed_limit` of a limit guard all its keys: only who holds them changes `limit_key` and parks
-- jobs of that limit. A transaction that reads or changes limits holds `concurrency_limit` in ROW SHARE. `open_session` takes
-- EXCLUSIVE, so it adds no limit in the meantime. What is declared or changed is combined by one transaction at a time, which
-- first locks `limit_change` in SHARE ROW EXCLUSIVE. Reading that table does not wait.
-- A job is in `ready` or in `parked`, never in both.
--
-- The turn of a key: when a key gets room, the first job of each queue and name that is parked for it returns to `ready`. If the
-- exchange that considers it finds another of its keys without room, it parks the job for that key, and the next job that is
-- parked for the first key has the turn. One exchange parks up to MAX_PARKED jobs, also of those that it moves in this way.

-- name: lock_affected_limits
-- Lock the limits that an exchange changes before it plans.
-- Inputs: the time; the session; the seqs that it settles; queues and names of the requested lanes; whether to lock the limits of
--   all these names that have jobs; whether also without jobs, because some may come before the lease
-- Result: the job names whose limits are locked
-- The locked limits are those of the settled jobs, and those whose parked jobs may return to a requested lane: by a settlement,
--   because a rate allows one now, or after a change. And once a second those of requested lanes with jobs, to note the time.
-- Locks: limits in the order of their names. The caller has locked the table, so no limit is added.
-- Atomic: held until the transaction ends. A later statement then reads the latest state of the limits.
CREATE OR REPLACE FUNCTION {schema}.lock_affected_limits_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_all bool, p_also_empty bool
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    concerned text[];
    held_lanes int4[];
    held_keys int8[];
    held_limits text[];
    noted_earlier text[];
    began int8 := {schema}.get_read_time_1(NULL);
    latest int8;
BEGIN
    SELECT array_agg(held.lane), array_agg(held.number) INTO held_lanes, held_keys FROM (
        SELECT l.lane, unnest(coalesce(l.key_numbers, ARRAY[CAST(NULL AS int8)])) AS number
        FROM {schema}.lease l WHERE l.session = p_session AND l.seq = ANY (p_seqs)
    ) held;
    IF array_remove(held_keys, NULL) <> '{}' THEN
        held_limits := ARRAY(SELECT DISTINCT u.limit_name FROM {schema}.limit_key u WHERE u.number = ANY (held_keys));
    END IF;
    noted_earlier := ARRAY(
        SELECT r.name FROM {schema}.rate_limit r WHERE r.name = ANY (p_names) AND r.used_at NOT BETWEEN p_now - 1000000 AND p_now
        UNION
        SELECT k.job_name FROM {schema}.keyed_limit k
        WHERE k.job_name = ANY (p_names) AND k.used_at NOT BETWEEN p_now - 1000000 AND p_now
    );
    concerned := ARRAY(
        SELECT a.name FROM {schema}.lane a WHERE a.id = ANY (held_lanes)
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        WHERE (p_all OR w.name = ANY (noted_earlier)) AND (p_also_empty OR EXISTS (
            SELECT FROM {schema}.lane a WHERE a.queue = w.queue AND a.name = w.name AND a.tenant = ''
                AND EXISTS (SELECT FROM {schema}.ready r WHERE r.lane = a.id OFFSET 0) OFFSET 0
        ) OR EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name OFFSET 0))
        UNION
        SELECT k.job_name FROM (
            SELECT u.limit_name FROM {schema}.limit_key u WHERE u.opens_at <= p_now ORDER BY u.opens_at OFFSET 0
        ) u JOIN {schema}.keyed_limit k ON k.limit_name = u.limit_name
        WHERE k.job_name = ANY (p_names)
        UNION
        SELECT k.job_name FROM {schema}.keyed_limit k
        WHERE k.limit_name = ANY (held_limits) AND k.job_name = ANY (p_names) AND EXISTS (SELECT FROM {schema}.parked)
        UNION
        SELECT c.job_name FROM {schema}.changed_limit c WHERE c.job_name = ANY (p_names)
        UNION
        SELECT c.name FROM {schema}.changed_key c WHERE c.name = ANY (p_names)
        UNION
        SELECT k.job_name FROM {schema}.keyed_limit k WHERE k.job_name = ANY (p_names) AND k.used_at > p_now + 1000000
    );
    PERFORM FROM {schema}.concurrency_limit WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.rate_limit WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.keyed_limit WHERE limit_name = ANY (ARRAY(
        SELECT k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = ANY (concerned)
        UNION
        SELECT unnest(held_limits)
    )) ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    -- While this transaction waited for the limits, others may have read a later time and used them.
    latest := p_now + GREATEST(0, {schema}.get_read_time_1(NULL) - began) + 1000000;
    IF EXISTS (
        SELECT FROM {schema}.rate_limit r WHERE r.name = ANY (concerned) AND r.used_at NOT BETWEEN p_now - 1000000 AND latest
    ) OR EXISTS (
        SELECT FROM {schema}.keyed_limit k WHERE k.job_name = ANY (concerned) AND k.used_at NOT BETWEEN p_now - 1000000 AND latest
    ) THEN
        PERFORM {schema}.follow_clock_1(p_now, latest, concerned);
    END IF;
    RETURN concerned;
END $$;

-- name: lock_own_limits
-- Lock the limits of job names.
-- Inputs: the names
-- Result: whether there are any
CREATE OR REPLACE FUNCTION {schema}.lock_own_limits_1(p_names text[]) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    any_found bool;
BEGIN
    PERFORM FROM {schema}.concurrency_limit WHERE name = ANY (p_names) ORDER BY name FOR NO KEY UPDATE;
    any_found := FOUND;
    PERFORM FROM {schema}.rate_limit WHERE name = ANY (p_names) ORDER BY name FOR NO KEY UPDATE;
    RETURN any_found OR FOUND;
END $$;

-- name: follow_clock
-- Let the rates of names and keys follow the clock if it was set back (`follow_clock` in core/rate_limits.py), and
-- store the time. A smaller difference than CLOCK_TOLERANCE is none.
-- Inputs: the time; the latest time that another exchange can have read if the clock was not set back; the job names, whose
--   limits are locked
-- Locks: rows of keys, if the clock was set back
CREATE OR REPLACE FUNCTION {schema}.follow_clock_1(p_now int8, p_latest int8, p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    limits text[];
    early record;
BEGIN
    UPDATE {schema}.rate_limit r SET used_at = p_now, spent_until = CASE WHEN p_now > r.used_at THEN r.spent_until
        ELSE LEAST(r.spent_until, p_now + GREATEST(GREATEST(r.burst, r.cost) * r.interval, r.spent_until - r.used_at)) END
    WHERE r.name = ANY (p_names) AND r.used_at NOT BETWEEN p_now - 1000000 AND p_latest;
    limits := ARRAY(SELECT DISTINCT k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = ANY (p_names));
    FOR early IN
        SELECT k.limit_name, max(k.used_at) AS used_at, coalesce(max(GREATEST(k.burst, k.cost) * k.interval), 0) AS full_burst
        FROM {schema}.keyed_limit k WHERE k.limit_name = ANY (limits)
        GROUP BY k.limit_name HAVING max(k.used_at) > p_latest
    LOOP
        UPDATE {schema}.limit_key u SET opens_at = CASE WHEN u.opens_at > p_now THEN p_now ELSE u.opens_at END,
            spent_until = LEAST(u.spent_until, p_now + GREATEST(early.full_burst, u.spent_until - early.used_at))
        WHERE u.limit_name = early.limit_name AND (u.spent_until > p_now OR u.opens_at > p_now);
    END LOOP;
    UPDATE {schema}.keyed_limit k SET used_at = p_now
    WHERE k.limit_name = ANY (limits) AND k.used_at NOT BETWEEN p_now - 1000000 AND p_latest;
END $$;

-- name: lock_all_limits
-- Lock all limits before leases end, and prevent new ones in the meantime.
-- Result: whether there is any concurrency limit
-- Locks: the tables `concurrency_limit` and `paused_queue` in ROW SHARE; limits in the order of their names
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION {schema}.lock_all_limits_1() RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.concurrency_limit, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM FROM {schema}.concurrency_limit ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.rate_limit ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.keyed_limit ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.share_class f ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    PERFORM {schema}.admit_turns_1(NULL);
    RETURN EXISTS (SELECT FROM {schema}.concurrency_limit);
END $$;

-- name: release_limits
-- Release places under limits.
-- Inputs: the lanes of leases that ended, one element for each lease
-- Result: those of the lanes whose names have a limit
-- Locks: limits, in the order of their names
-- Atomic: one UPDATE of each limit by the number of places
CREATE OR REPLACE FUNCTION {schema}.release_limits_1(p_lanes int4[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    to_notify int4[];
BEGIN
    WITH freed AS (
        SELECT a.name, count(*) AS places, array_agg(DISTINCT a.id) AS lanes
        FROM unnest(p_lanes) u JOIN {schema}.lane a ON a.id = u GROUP BY a.name
    ), opened AS (
        UPDATE {schema}.concurrency_limit c SET in_use = c.in_use - freed.places FROM freed WHERE c.name = freed.name
        RETURNING freed.lanes
    )
    SELECT array_agg(l) INTO to_notify FROM opened, unnest(lanes) l;
    RETURN to_notify;
END $$;

-- name: take_limits
-- Count the jobs that an exchange leased against the limits of their names.
-- Inputs: the time; the session; the number of the exchange
-- Locks: limits that the exchange has locked already
-- Atomic: one UPDATE of each limit by the number of places
CREATE OR REPLACE FUNCTION {schema}.take_limits_1(p_now int8, p_session int4, p_number int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.concurrency_limit c SET in_use = c.in_use + taken.places
    FROM (
        SELECT a.name, count(*) AS places FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.exchange_number = p_number GROUP BY a.name
    ) taken
    WHERE c.name = taken.name;
    UPDATE {schema}.rate_limit r SET spent_until = GREATEST(r.spent_until, p_now) + taken.jobs * r.cost * r.interval
    FROM (
        SELECT a.name, count(*) AS jobs FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.exchange_number = p_number GROUP BY a.name
    ) taken
    WHERE r.name = taken.name;
END $$;

-- name: count_room
-- Count the jobs that a rate limit allows to start now.
-- Inputs: the time; the columns of `rate_limit`
-- Result: the number of jobs
-- Atomic: reads nothing. It is a single expression, which the planner puts in place of the call.
CREATE OR REPLACE FUNCTION {schema}.count_room_1(
    p_now int8, p_interval int8, p_burst int8, p_cost int8, p_spent_until int8
) RETURNS int4
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (p_burst - LEAST(p_cost, p_burst)) * p_interval < GREATEST(0, p_spent_until - p_now) THEN 0
        ELSE CAST(((p_burst - LEAST(p_cost, p_burst)) * p_interval - GREATEST(0, p_spent_until - p_now))
            / (p_cost * p_interval) + 1 AS int4) END
$$;

-- name: count_available
-- Count the jobs of a name that its concurrency limit and its rate limit allow to start now.
-- Inputs: the time; the name
-- Result: the number of jobs; NULL: the name has no limit
-- Atomic: one read of each limit; the caller has locked them. A function in SQL would be planned again in each exchange.
CREATE OR REPLACE FUNCTION {schema}.count_available_1(p_now int8, p_name text) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    RETURN LEAST(
        (SELECT c.maximum - c.in_use FROM {schema}.concurrency_limit c WHERE c.name = p_name),
        (
            SELECT {schema}.count_room_1(p_now, r.interval, r.burst, r.cost, r.spent_until)
            FROM {schema}.rate_limit r WHERE r.name = p_name
        )
    );
END $$;

-- name: is_queue_full
-- Test whether the limit of a queue, as a job name has it, allows no further job.
-- Inputs: the time; the queue; the name
-- Result: whether it is full; false if there is none
-- Atomic: one read
CREATE OR REPLACE FUNCTION {schema}.is_queue_full_1(p_now int8, p_queue text, p_name text) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.keyed_limit k
        LEFT JOIN {schema}.limit_key u ON u.limit_name = k.limit_name AND u.key = ''
        WHERE k.limit_name = 'queue:' || p_queue AND k.job_name = p_name AND (
            k.concurrency <= coalesce(u.in_use, 0)
            OR {schema}.count_room_1(p_now, k.interval, k.burst, coalesce(k.cost, 1), coalesce(u.spent_until, 0)) = 0
        )
    );
END $$;

-- name: find_next_opening
-- Find when the first rate of a job name or of a queue that delays a job of the requested lanes allows one, or parked jobs are
-- considered again.
-- Inputs: the time; queues and names of the requested lanes
-- Result: the time; NULL: no limit delays a job until a time that is known
-- It reads in three statements. A change in between is found by the next exchange.
CREATE OR REPLACE FUNCTION {schema}.find_next_opening_1(p_now int8, p_queues text[], p_names text[]) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key) THEN
        RETURN p_now;
    END IF;
    RETURN LEAST((
        SELECT u.opens_at FROM {schema}.limit_key u WHERE u.opens_at >= p_now AND EXISTS (
            SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
        ) ORDER BY u.opens_at LIMIT 1
    ), (
        SELECT min(w.opens_at) FROM (  -- OFFSET 0 looks for jobs only where a rate delays them
            SELECT w.queue, w.name, r.spent_until - (r.burst - LEAST(r.cost, r.burst)) * r.interval AS opens_at
            FROM unnest(p_queues, p_names) AS w (queue, name)
            CROSS JOIN LATERAL (
                SELECT l.interval, l.burst, l.cost, l.spent_until FROM {schema}.rate_limit l WHERE l.name = w.name
                UNION ALL
                SELECT k.interval, k.burst, coalesce(k.cost, 1), coalesce(u.spent_until, 0) FROM {schema}.keyed_limit k
                LEFT JOIN {schema}.limit_key u ON u.limit_name = k.limit_name AND u.key = ''
                WHERE k.limit_name = 'queue:' || w.queue AND k.job_name = w.name AND k.interval IS NOT NULL
            ) r
            WHERE {schema}.count_room_1(p_now, r.interval, r.burst, r.cost, r.spent_until) = 0 OFFSET 0
        ) w
        WHERE NOT {schema}.is_paused_1(p_now, w.queue)
            AND (EXISTS (
                SELECT FROM {schema}.lane a WHERE a.queue = w.queue AND a.name = w.name AND a.tenant = ''
                    AND EXISTS (SELECT FROM {schema}.ready z WHERE z.lane = a.id OFFSET 0) OFFSET 0
            ) OR EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name OFFSET 0))
    ));
END $$;

-- name: give_units_back
-- Give back what jobs that have not started took from the rate limits of their names. The part that has become available
-- again by itself since then is not returned.
-- Inputs: the time; the lanes of the jobs, one element for each job, and when each was leased
-- Locks: rate limits that the caller has locked already
-- Atomic: one UPDATE of each rate limit
CREATE OR REPLACE FUNCTION {schema}.give_units_back_1(p_now int8, p_lanes int4[], p_taken_at int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.rate_limit r SET spent_until = GREATEST(r.spent_until - (
            SELECT sum(GREATEST(0, r.cost * r.interval - GREATEST(0, p_now - t.at)))::int8 FROM unnest(unstarted.taken_at) t (at)
        ), p_now - 31622400000000)
    FROM (
        SELECT a.name, array_agg(u.taken_at) AS taken_at FROM unnest(p_lanes, p_taken_at) AS u (lane, taken_at)
        JOIN {schema}.lane a ON a.id = u.lane GROUP BY a.name
    ) unstarted
    WHERE r.name = unstarted.name;
END $$;

-- name: spend_units
-- Take units that an attempt spent beyond its cost, or give some back.
-- Inputs: the time; the lane of the job; the units; negative: give back
-- Locks: the rate limit, which the caller has locked already
-- Atomic: one UPDATE. `spent_until` is at most 366 days ahead or behind, so that nothing overflows.
CREATE OR REPLACE FUNCTION {schema}.spend_units_1(p_now int8, p_lane int4, p_units int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.rate_limit r SET spent_until = LEAST(GREATEST(
        CASE WHEN p_units > 0 THEN GREATEST(r.spent_until, p_now) ELSE r.spent_until END + p_units * r.interval,
        p_now - 31622400000000), p_now + 31622400000000)
    FROM {schema}.lane a WHERE a.id = p_lane AND r.name = a.name;
END $$;

-- name: block_rate
-- Let a rate limit allow no job for some time, and no burst after that.
-- Inputs: the time; the lane of the job that was refused; the delay in microseconds
-- Result: whether its name has a rate limit
-- Locks: the rate limit, which the caller has locked already
-- Atomic: one UPDATE
CREATE OR REPLACE FUNCTION {schema}.block_rate_1(p_now int8, p_lane int4, p_delay int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.rate_limit r SET spent_until = LEAST(GREATEST(r.spent_until,
        p_now + LEAST(p_delay, 31622400000000) + (r.burst - LEAST(r.cost, r.burst)) * r.interval),
        p_now + 31622400000000)
    FROM {schema}.lane a WHERE a.id = p_lane AND r.name = a.name;
    RETURN FOUND;
END $$;

-- name: list_rates
-- List the rate limits.
-- Inputs: a name (NULL: all names)
-- Result: the rows of `rate_limit`, ordered by name
CREATE OR REPLACE FUNCTION {schema}.list_rates_1(p_name text) RETURNS SETOF {schema}.rate_limit
LANGUAGE sql STABLE ROWS 10 SET jit TO off AS $$
    SELECT * FROM {schema}.rate_limit r WHERE p_name IS NULL OR r.name = p_name ORDER BY r.name
$$;

-- name: declare_limits
-- Store what a session declares for its names, and let it apply.
-- Inputs: as for `open_session_1`
CREATE OR REPLACE FUNCTION {schema}.declare_limits_1(
    p_now int8, p_names text[], p_limits int4[], p_rates text[], p_intervals int8[], p_bursts int8[], p_costs int8[],
    p_keyed jsonb
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM {schema}.declared_limit d USING unnest(p_names, p_limits, p_rates) AS l (name, maximum, rate)
    WHERE d.name = l.name AND l.maximum IS NULL AND l.rate IS NULL AND NOT p_keyed ? l.name;
    INSERT INTO {schema}.declared_limit AS d (name, maximum, interval, burst, cost, rate, keyed)
    SELECT l.name, l.maximum, l.interval, l.burst, l.cost, l.rate, coalesce(p_keyed -> l.name, '[]')
    FROM unnest(p_names, p_limits, p_rates, p_intervals, p_bursts, p_costs) AS l (name, maximum, rate, interval, burst, cost)
    WHERE l.maximum IS NOT NULL OR l.rate IS NOT NULL OR p_keyed ? l.name
    ON CONFLICT (name) DO UPDATE SET maximum = excluded.maximum, interval = excluded.interval, burst = excluded.burst,
        cost = excluded.cost, rate = excluded.rate, keyed = excluded.keyed
    WHERE d IS DISTINCT FROM excluded;
    PERFORM {schema}.apply_limits_1(p_now, p_names);
END $$;

-- name: list_limits_in_force
-- Combine what is declared for job names with the changes of whole limits. A changed rate keeps the declared cost. A change
-- of the limit of a queue concerns each name.
-- Inputs: the job names
-- Result: one row for each name, with NULL for no limit; `keyed` as for `set_keyed_limits_1`
CREATE OR REPLACE FUNCTION {schema}.list_limits_in_force_1(p_names text[]) RETURNS TABLE (
    name text, maximum int4, unit_time int8, burst int8, cost int8, rate text, keyed jsonb
)
LANGUAGE sql STABLE AS $$
    SELECT n.name, coalesce(c.concurrency, d.maximum), coalesce(c.interval, d.interval), coalesce(c.burst, d.burst),
        coalesce(d.cost, 1), coalesce(c.rate, d.rate), coalesce(k.limits, '[]')
    FROM (SELECT DISTINCT name FROM unnest(p_names) u (name)) n
    LEFT JOIN {schema}.declared_limit d ON d.name = n.name
    LEFT JOIN {schema}.limit_change c ON c.name = 'job:' || n.name AND NOT c.for_key
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_array(
            limits.parts -> 0,
            coalesce(to_jsonb(x.concurrency), limits.parts -> 1),
            coalesce(to_jsonb(x.interval), limits.parts -> 2),
            coalesce(to_jsonb(x.burst), limits.parts -> 3),
            CASE WHEN x.interval IS NOT NULL AND limits.parts ->> 4 IS NULL THEN '1' ELSE limits.parts -> 4 END
        ) ORDER BY (limits.parts ->> 0) COLLATE "C") AS limits
        FROM (
            SELECT own FROM jsonb_array_elements(d.keyed) own
            UNION ALL
            SELECT jsonb_build_array(q.name, NULL, NULL, NULL, NULL) FROM {schema}.limit_change q
            WHERE starts_with(q.name, 'queue:') AND NOT q.for_key AND NOT EXISTS (
                SELECT FROM jsonb_array_elements(d.keyed) own WHERE own ->> 0 = q.name
            )
        ) limits (parts)
        LEFT JOIN {schema}.limit_change x ON x.name = limits.parts ->> 0 AND NOT x.for_key
    ) k ON true
    ORDER BY n.name COLLATE "C"
$$;

-- name: apply_limits
-- Let what is declared for job names apply, with the changes.
-- Inputs: the time; the job names
-- Locks: if a concurrency limit or the limit of a queue is new, the table `concurrency_limit` in EXCLUSIVE; then limits by
--   name. Exchanges hold that table in ROW SHARE, so no job is leased between the count and the new limit.
CREATE OR REPLACE FUNCTION {schema}.apply_limits_1(p_now int8, p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
    keyed jsonb;
BEGIN
    IF EXISTS (
        SELECT FROM {schema}.list_limits_in_force_1(p_names) l WHERE l.maximum IS NOT NULL
            AND NOT EXISTS (SELECT FROM {schema}.concurrency_limit c WHERE c.name = l.name)
    ) OR EXISTS (
        SELECT FROM {schema}.list_limits_in_force_1(p_names) l, jsonb_array_elements(l.keyed) q
        WHERE starts_with(q ->> 0, 'queue:')
            AND NOT EXISTS (SELECT FROM {schema}.keyed_limit k WHERE k.job_name = l.name AND k.limit_name = q ->> 0)
    ) THEN
        LOCK TABLE {schema}.concurrency_limit IN EXCLUSIVE MODE;
    END IF;
    IF EXISTS (
        SELECT FROM {schema}.list_limits_in_force_1(p_names) l
        WHERE l.maximum IS NOT NULL OR l.unit_time IS NOT NULL OR l.keyed <> '[]'
    ) THEN
        PERFORM {schema}.note_feature_1('limits');
    END IF;
    FOR wanted IN SELECT l.name, l.maximum FROM {schema}.list_limits_in_force_1(p_names) l LOOP
        IF wanted.maximum IS NULL THEN
            DELETE FROM {schema}.concurrency_limit WHERE name = wanted.name;
        ELSE
            INSERT INTO {schema}.concurrency_limit AS c (name, maximum, in_use)
            VALUES (wanted.name, wanted.maximum, (
                SELECT count(*) FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane WHERE a.name = wanted.name
            ))
            ON CONFLICT (name) DO UPDATE SET maximum = excluded.maximum;
        END IF;
    END LOOP;
    FOR wanted IN SELECT l.* FROM {schema}.list_limits_in_force_1(p_names) l LOOP
        IF wanted.unit_time IS NULL THEN
            DELETE FROM {schema}.rate_limit WHERE name = wanted.name;
        ELSE
            INSERT INTO {schema}.rate_limit AS r (name, rate, interval, burst, cost, spent_until)
            VALUES (wanted.name, wanted.rate, wanted.unit_time, wanted.burst, wanted.cost, 0)
            ON CONFLICT (name) DO UPDATE SET rate = excluded.rate, interval = excluded.interval,
                burst = excluded.burst, cost = excluded.cost, spent_until = {schema}.carry_over_1(
                    p_now, r.spent_until, r.interval, r.burst, excluded.interval, excluded.burst);
        END IF;
    END LOOP;
    SELECT coalesce(jsonb_object_agg(l.name, l.keyed) FILTER (WHERE l.keyed <> '[]'), '{}') INTO keyed
    FROM {schema}.list_limits_in_force_1(p_names) l;
    PERFORM {schema}.carry_keys_over_1(p_now, p_names, keyed);
    PERFORM {schema}.set_keyed_limits_1(p_now, p_names, keyed);
END $$;

-- name: carry_over
-- Return until when units are spent after a rate replaced another (`RateLimit.carry_over` in core/rate_limits.py).
-- Inputs: the time; until when they were spent; interval and burst of the old rate and of the new one
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION {schema}.carry_over_1(
    p_now int8, p_spent_until int8, p_old_interval int8, p_old_burst int8, p_interval int8, p_burst int8
) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_interval IS NULL OR p_spent_until <= p_now + p_old_burst * p_old_interval IS NOT TRUE
        THEN p_spent_until ELSE LEAST(p_spent_until, p_now + p_burst * p_interval) END
$$;

-- name: carry_keys_over
-- Carry the rates of keys over whose limits get another rate, except keys that have a rate of their own.
-- Inputs: as for `set_keyed_limits_1`
-- Locks: if a rate changes, the table `keyed_limit` in EXCLUSIVE
CREATE OR REPLACE FUNCTION {schema}.carry_keys_over_1(p_now int8, p_names text[], p_limits jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    FOR changed IN
        SELECT k.limit_name, k.interval AS old_interval, k.burst AS old_burst, CAST(l ->> 2 AS int8) AS new_interval,
            CAST(l ->> 3 AS int8) AS new_burst
        FROM {schema}.keyed_limit k, jsonb_array_elements(p_limits -> k.job_name) l
        WHERE k.job_name = ANY (p_names) AND l ->> 0 = k.limit_name
            AND (CAST(l ->> 2 AS int8) <> k.interval OR CAST(l ->> 3 AS int8) <> k.burst)
        ORDER BY k.limit_name, k.job_name
    LOOP
        LOCK TABLE {schema}.keyed_limit IN EXCLUSIVE MODE;
        UPDATE {schema}.limit_key u SET spent_until = {schema}.carry_over_1(p_now, u.spent_until, changed.old_interval,
            changed.old_burst, changed.new_interval, changed.new_burst)
        WHERE u.limit_name = changed.limit_name AND u.spent_until > p_now AND NOT EXISTS (
            SELECT FROM {schema}.limit_change c
            WHERE c.name = u.limit_name AND c.for_key AND c.key = u.key AND c.interval IS NOT NULL
        );
    END LOOP;
END $$;

-- name: change_limit
-- Change a limit or one of its keys until it is reset. What an earlier change set stays, unless this one sets it too.
-- Inputs: the time or NULL; the name of the limit; whether the change is for one key, and that key; the maximum (NULL: not
--   changed); rate, interval and burst (NULL: not changed); who changed it and why
-- Locks: `limit_change` in SHARE ROW EXCLUSIVE; then as `apply_limits_1`, or the rows of the limit by key
-- Atomic: one transaction, so the next exchange follows the change
CREATE OR REPLACE FUNCTION {schema}.change_limit_1(
    p_now int8, p_name text, p_for_key bool, p_key text, p_concurrency int4, p_rate text, p_interval int8, p_burst int8,
    p_by text, p_reason text
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    before {schema}.limit_change;
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key = p_for_key AND c.key = p_key;
    INSERT INTO {schema}.limit_change AS c (name, for_key, key, concurrency, rate, interval, burst, changed_at, changed_by, reason)
    VALUES (p_name, p_for_key, p_key, p_concurrency, p_rate, p_interval, p_burst, now, p_by, p_reason)
    ON CONFLICT (name, for_key, key) DO UPDATE SET concurrency = coalesce(excluded.concurrency, c.concurrency),
        rate = coalesce(excluded.rate, c.rate), interval = coalesce(excluded.interval, c.interval),
        burst = coalesce(excluded.burst, c.burst), changed_at = excluded.changed_at, changed_by = excluded.changed_by,
        reason = excluded.reason;
    PERFORM {schema}.follow_change_1(now, p_name, p_for_key, p_key, before);
END $$;

-- name: reset_limit
-- Let what is declared apply again.
-- Inputs: the time or NULL; the name of the limit; whether the change was for one key, and that key
-- Result: whether there was a change
-- Locks: as `change_limit_1`
CREATE OR REPLACE FUNCTION {schema}.reset_limit_1(p_now int8, p_name text, p_for_key bool, p_key text) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    before {schema}.limit_change;
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key = p_for_key AND c.key = p_key
    RETURNING * INTO before;
    IF before.name IS NOT NULL THEN
        PERFORM {schema}.follow_change_1(now, p_name, p_for_key, p_key, before);
    END IF;
    RETURN before.name IS NOT NULL;
END $$;

-- name: follow_change
-- Apply a limit that was changed, or consider the jobs again that are parked for a key that was changed.
-- Inputs: the time; the name of the limit; whether the change was for one key, and that key; the change before
CREATE OR REPLACE FUNCTION {schema}.follow_change_1(
    p_now int8, p_name text, p_for_key bool, p_key text, p_before {schema}.limit_change
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    after {schema}.limit_change;
    most int4 := 1;
    own record;
BEGIN
    IF NOT p_for_key AND starts_with(p_name, 'queue:') THEN
        PERFORM {schema}.apply_limits_1(p_now, ARRAY(
            SELECT d.name FROM {schema}.declared_limit d UNION SELECT k.job_name FROM {schema}.keyed_limit k
            UNION SELECT unnest(d.names) FROM {schema}.session_description d JOIN {schema}.session s ON s.number = d.session
            WHERE s.ended_at IS NULL
        ));
        RETURN;
    END IF;
    IF NOT p_for_key THEN
        PERFORM {schema}.apply_limits_1(p_now, CASE WHEN starts_with(p_name, 'job:') THEN ARRAY[substr(p_name, 5)]
            ELSE ARRAY(SELECT k.job_name FROM {schema}.keyed_limit k WHERE k.limit_name = p_name) END);
        RETURN;
    END IF;
    SELECT * INTO after FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key AND c.key = p_key;
    FOR own IN
        SELECT * FROM {schema}.keyed_limit k WHERE k.limit_name = p_name ORDER BY k.job_name FOR NO KEY UPDATE
    LOOP
        UPDATE {schema}.limit_key u SET spent_until = {schema}.carry_over_1(p_now, u.spent_until,
            coalesce(p_before.interval, own.interval), coalesce(p_before.burst, own.burst),
            coalesce(after.interval, own.interval), coalesce(after.burst, own.burst))
        WHERE u.limit_name = p_name AND u.key = p_key;
        most := GREATEST(most, after.concurrency, CASE WHEN after.concurrency IS NULL THEN own.concurrency END);
    END LOOP;
    INSERT INTO {schema}.changed_key AS c (limit_name, key, queue, name, number)
    SELECT DISTINCT p_name, p_key, p.queue, p.name, most FROM {schema}.parked p WHERE p.limit_name = p_name AND p.key = p_key
    ON CONFLICT (limit_name, key, queue, name) DO UPDATE SET number = excluded.number;
    PERFORM {schema}.unpark_changed_1(p_now);
END $$;

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
        -- Of each key as many jobs return as can start at once: further ones would be parked again (`count_at_once` in
        -- core/limits.py). All return if the limit goes.
        INSERT INTO {schema}.changed_key AS c (limit_name, key, queue, name, number)
        SELECT DISTINCT p.limit_name, p.key, p.queue, p.name,
            GREATEST(1, LEAST(CAST(d ->> 1 AS int4), CAST(d ->> 3 AS int8)))
        FROM jsonb_array_elements(declared) d JOIN {schema}.parked p ON p.limit_name = d ->> 0 AND p.name = job
        ON CONFLICT (limit_name, key, queue, name) DO UPDATE SET number = excluded.number;
        INSERT INTO {schema}.changed_limit AS c (job_name, limit_name)
        SELECT k.job_name, k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = job AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(declared) d WHERE d ->> 0 = k.limit_name
        )
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
-- Find the lanes whose jobs may be parked. The limit of a queue closes lanes.
-- Inputs: queues and names of the requested lanes
-- Result: one value for each lane, in their order
CREATE OR REPLACE FUNCTION {schema}.find_keyed_lanes_1(p_queues text[], p_names text[]) RETURNS bool[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT count(k.job_name) > 0 FROM unnest(p_queues, p_names) WITH ORDINALITY AS r (queue, name, place)
        LEFT JOIN {schema}.keyed_limit k ON k.job_name = r.name
            AND NOT starts_with(k.limit_name, 'queue:')
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
-- Return parked jobs to `ready` after limits changed, up to MAX_RETURNED in core/limits.py.
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
