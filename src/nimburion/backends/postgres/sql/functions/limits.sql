-- Concurrency limits: lock them, give places back, count places taken.
--
-- Limits are locked in the order of their names and held until the transaction ends. Whoever reads or changes them holds
-- `concurrency_limit` in ROW SHARE, so that `open_session`, which takes EXCLUSIVE, adds no limit meanwhile.

-- name: lock_affected_limits
-- Lock the limits that an exchange may change, where there are any.
-- Inputs: the time; the session; seqs that it settles; queues and names that are asked for; low_water_marks by
--   lane
-- Result: the names that are locked: of jobs that it settles, of lanes asked for that hold jobs, and of
--   jobs that are to be promoted. An idle fleet must not queue up at a limit
-- Locks: limits, in the order of their names. The caller holds the table, so that no new one is made
-- Atomic: held until the transaction ends; who reads a limit then reads its latest state
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
-- Lock all limits before leases end, and keep new ones from being made meanwhile.
-- Result: whether there is any limit
-- Locks: the tables `concurrency_limit` and `paused_queue` in ROW SHARE; limits, in the order of their names
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION {schema}.lock_all_limits_1() RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.concurrency_limit, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM FROM {schema}.concurrency_limit ORDER BY name FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

-- name: release_limits
-- Give places under limits back.
-- Inputs: the lanes of leases that ended, one entry a lease
-- Result: the lanes whose names have a limit
-- Locks: limits, in the order of their names
-- Atomic: one update a limit, by the number of places
CREATE OR REPLACE FUNCTION {schema}.release_limits_1(p_lanes int4[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    to_notify int4[];
BEGIN
    WITH freed AS (
        SELECT a.name, count(*) AS places, array_agg(DISTINCT a.id) AS lanes
        FROM unnest(p_lanes) u JOIN {schema}.lane a ON a.id = u GROUP BY a.name
    ), opened AS (
        UPDATE {schema}.concurrency_limit g SET in_use = g.in_use - f.places FROM freed f WHERE g.name = f.name
        RETURNING f.lanes
    )
    SELECT array_agg(l) INTO to_notify FROM opened, unnest(lanes) l;
    RETURN to_notify;
END $$;

-- name: take_limits
-- Count what an exchange handed out against the limits.
-- Inputs: the session, its exchange
-- Locks: limits, which the exchange holds already
-- Atomic: one update a limit, by the number of places
CREATE OR REPLACE FUNCTION {schema}.take_limits_1(p_session int4, p_number int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.concurrency_limit g SET in_use = g.in_use + t.places
    FROM (
        SELECT a.name, count(*) AS places FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.exchange_number = p_number GROUP BY a.name
    ) t
    WHERE g.name = t.name;
END $$;
