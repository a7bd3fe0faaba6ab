-- Concurrency limits and rate limits: lock them, release places, take places and units.
-- `core/rate_limits.py` explains the arithmetic of rate limits.
--
-- Rate limits are locked after concurrency limits, also in the order of their names, and limits by key after these. Limits are locked in the order of their names until the transaction ends. A transaction that reads or changes them
-- holds `concurrency_limit` in ROW SHARE. `open_session` takes EXCLUSIVE, so it adds no limit in the meantime.

-- name: lock_affected_limits
-- Lock the limits that an exchange may change.
-- Inputs: the time; the session; the seqs that it settles; queues and names of the requested lanes; lanes and their
--   low-water marks
-- Result: the names whose limits are locked: those of the settled jobs, of requested lanes that have jobs, and of jobs
--   that are to be promoted. Other names are left out, so that idle workers do not wait for each other at a limit.
-- Locks: limits in the order of their names. The caller has locked the table, so no limit is added.
-- Atomic: held until the transaction ends. A later statement then reads the latest state of the limits.
CREATE OR REPLACE FUNCTION {schema}.lock_affected_limits_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_low_water_lanes int4[],
    p_low_water_marks int8[]
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    concerned text[];
BEGIN
    concerned := ARRAY(
        SELECT a.name FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.seq = ANY (p_seqs)
        UNION
        SELECT a.name FROM {schema}.scheduled s JOIN {schema}.lane a ON a.id = s.lane WHERE s.due <= p_now
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        JOIN {schema}.lane a ON a.queue = w.queue AND a.name = w.name
        LEFT JOIN unnest(p_low_water_lanes, p_low_water_marks) AS f (lane, low_water_mark) ON f.lane = a.id
        WHERE EXISTS (
            SELECT FROM {schema}.ready r
            WHERE r.lane = a.id AND (r.due >= f.low_water_mark OR f.low_water_mark IS NULL OR a.is_late OR f.low_water_mark > p_now)
        )
        UNION
        SELECT k.job_name FROM (
            SELECT u.limit_name FROM {schema}.limit_key u WHERE u.opens_at <= p_now ORDER BY u.opens_at OFFSET 0
        ) u JOIN {schema}.keyed_limit k ON k.limit_name = u.limit_name
        WHERE k.job_name = ANY (p_names)
        UNION
        SELECT c.job_name FROM {schema}.changed_limit c WHERE c.job_name = ANY (p_names)
    );
    PERFORM FROM {schema}.concurrency_limit WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.rate_limit WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.keyed_limit WHERE limit_name = ANY (ARRAY(
        SELECT k.limit_name FROM {schema}.keyed_limit k WHERE k.job_name = ANY (concerned)
        UNION
        SELECT c.limit_name FROM {schema}.lease_key c WHERE c.session = p_session AND c.seq = ANY (p_seqs)
    )) ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    RETURN concerned;
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
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION {schema}.count_room_1(
    p_now int8, p_interval int8, p_burst int8, p_cost int8, p_spent_until int8
) RETURNS int4
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN room.rest < 0 THEN 0 ELSE CAST(room.rest / (p_cost * p_interval) + 1 AS int4) END
    FROM (
        SELECT (p_burst - LEAST(p_cost, p_burst)) * p_interval - GREATEST(0, p_spent_until - p_now) AS rest
    ) room
$$;

-- name: count_available
-- Count the jobs of a name that its concurrency limit and its rate limit allow to start now.
-- Inputs: the time; the name
-- Result: the number of jobs; NULL: the name has no limit
-- Atomic: one read of each limit; the caller has locked them
CREATE OR REPLACE FUNCTION {schema}.count_available_1(p_now int8, p_name text) RETURNS int4
LANGUAGE sql AS $$
    SELECT LEAST(
        (SELECT c.maximum - c.in_use FROM {schema}.concurrency_limit c WHERE c.name = p_name),
        (
            SELECT {schema}.count_room_1(p_now, r.interval, r.burst, r.cost, r.spent_until)
            FROM {schema}.rate_limit r WHERE r.name = p_name
        )
    )
$$;

-- name: find_next_opening
-- Find when the first rate limit that delays a job of the requested lanes allows one.
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
        JOIN {schema}.rate_limit r ON r.name = w.name
        JOIN {schema}.lane a ON a.queue = w.queue AND a.name = w.name
        LEFT JOIN unnest(p_low_water_lanes, p_low_water_marks) AS f (lane, low_water_mark) ON f.lane = a.id
        WHERE {schema}.count_room_1(p_now, r.interval, r.burst, r.cost, r.spent_until) = 0
            AND NOT EXISTS (
                SELECT FROM {schema}.paused_queue p WHERE p.queue = w.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
            )
            AND EXISTS (
                SELECT FROM {schema}.ready z WHERE z.lane = a.id
                    AND (z.due >= f.low_water_mark OR f.low_water_mark IS NULL OR a.is_late OR f.low_water_mark > p_now)
            )
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
LANGUAGE sql STABLE AS $$
    SELECT * FROM {schema}.rate_limit r WHERE p_name IS NULL OR r.name = p_name ORDER BY r.name
$$;
