-- Concurrency limits: lock them, release places, take places.
--
-- Limits are locked in the order of their names until the transaction ends. A transaction that reads or changes them
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
    );
    PERFORM FROM {schema}.concurrency_limit WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    RETURN concerned;
END $$;

-- name: lock_all_limits
-- Lock all limits before leases end, and prevent new ones in the meantime.
-- Result: whether there is any limit
-- Locks: the tables `concurrency_limit` and `paused_queue` in ROW SHARE; limits in the order of their names
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION {schema}.lock_all_limits_1() RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.concurrency_limit, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM FROM {schema}.concurrency_limit ORDER BY name FOR NO KEY UPDATE;
    RETURN FOUND;
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
-- Count the jobs that an exchange leased against the limits.
-- Inputs: the session; the number of the exchange
-- Locks: limits that the exchange has locked already
-- Atomic: one UPDATE of each limit by the number of places
CREATE OR REPLACE FUNCTION {schema}.take_limits_1(p_session int4, p_number int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.concurrency_limit c SET in_use = c.in_use + taken.places
    FROM (
        SELECT a.name, count(*) AS places FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.exchange_number = p_number GROUP BY a.name
    ) taken
    WHERE c.name = taken.name;
END $$;
