-- Concurrency limits and rate limits: lock them, release places, take places and units. Then what workers declare and what
-- operators change at run time: `concurrency_limit`, `rate_limit` and `keyed_limit` hold what is in force. A change of one
-- key stays in `limit_change`; `list_job_keys_1` reads it with the limits by key.
-- `core/rate_limits.py` explains the arithmetic of rate limits.
--
-- Rate limits are locked after concurrency limits, also in the order of their names, and limits by key after these. Limits are locked in the order of their names until the transaction ends. A transaction that reads or changes them
-- holds `concurrency_limit` in ROW SHARE. `open_session` takes EXCLUSIVE, so it adds no limit in the meantime.
-- What is declared or changed is combined by one transaction at a time, which first locks `limit_change` in SHARE ROW
-- EXCLUSIVE. Reading that table does not wait.

-- name: lock_affected_limits
-- Lock the limits that an exchange may change.
-- Inputs: the time; the session; the seqs that it settles; queues and names of the requested lanes; lanes and their
--   low-water marks
-- Result: the names whose limits are locked: those of the settled jobs, of requested lanes that have jobs or that may get
--   parked ones from the settled jobs, and of jobs that are to be promoted. Other names are left out, so that idle workers
--   do not wait for each other at a limit.
-- Locks: limits in the order of their names. The caller has locked the table, so no limit is added.
-- Atomic: held until the transaction ends. A later statement then reads the latest state of the limits.
CREATE OR REPLACE FUNCTION {schema}.lock_affected_limits_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_low_water_lanes int4[],
    p_low_water_marks int8[]
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    concerned text[];
    held_lanes int4[];
    held_keys int8[];
    held_limits text[];
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
    concerned := ARRAY(
        SELECT a.name FROM {schema}.lane a WHERE a.id = ANY (held_lanes)
        UNION
        SELECT a.name FROM {schema}.scheduled s JOIN {schema}.lane a ON a.id = s.lane WHERE s.due <= p_now
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        JOIN {schema}.lane a ON a.queue = w.queue AND a.name = w.name AND a.tenant = ''
        LEFT JOIN unnest(p_low_water_lanes, p_low_water_marks) AS f (lane, low_water_mark) ON f.lane = a.id
        WHERE EXISTS (
            SELECT FROM {schema}.ready r
            WHERE r.lane = a.id AND (r.due >= f.low_water_mark OR f.low_water_mark IS NULL OR a.is_late OR f.low_water_mark > p_now)
        )
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        WHERE EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name OFFSET 0)
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
    PERFORM FROM {schema}.tenant_floor f ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
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
-- Find when the first rate of a job name or of a queue that delays a job of the requested lanes allows one.
-- Inputs: the time; queues and names of the requested lanes; lanes and their low-water marks
-- Result: the time; NULL: no rate limit delays a job
-- Atomic: one read
CREATE OR REPLACE FUNCTION {schema}.find_next_opening_1(
    p_now int8, p_queues text[], p_names text[], p_low_water_lanes int4[], p_low_water_marks int8[]
) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT min(r.spent_until - (r.burst - LEAST(r.cost, r.burst)) * r.interval)
        FROM unnest(p_queues, p_names) AS w (queue, name)
        CROSS JOIN LATERAL (
            SELECT l.interval, l.burst, l.cost, l.spent_until FROM {schema}.rate_limit l WHERE l.name = w.name
            UNION ALL
            SELECT k.interval, k.burst, coalesce(k.cost, 1), coalesce(u.spent_until, 0) FROM {schema}.keyed_limit k
            LEFT JOIN {schema}.limit_key u ON u.limit_name = k.limit_name AND u.key = ''
            WHERE k.limit_name = 'queue:' || w.queue AND k.job_name = w.name AND k.interval IS NOT NULL
        ) r
        LEFT JOIN {schema}.lane a ON a.queue = w.queue AND a.name = w.name AND a.tenant = ''
        LEFT JOIN unnest(p_low_water_lanes, p_low_water_marks) AS f (lane, low_water_mark) ON f.lane = a.id
        WHERE {schema}.count_room_1(p_now, r.interval, r.burst, r.cost, r.spent_until) = 0
            AND NOT EXISTS (
                SELECT FROM {schema}.paused_queue p WHERE p.queue = w.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
            )
            AND (EXISTS (
                SELECT FROM {schema}.ready z WHERE z.lane = a.id
                    AND (z.due >= f.low_water_mark OR f.low_water_mark IS NULL OR a.is_late OR f.low_water_mark > p_now)
            ) OR EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name))
    );
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
