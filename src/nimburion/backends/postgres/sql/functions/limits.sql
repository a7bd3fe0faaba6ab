-- Concurrency limits: lock them, give places back, count places taken.
--
-- Limits are locked in the order of their names and held until the transaction ends. Whoever reads or changes them holds
-- `gate` in ROW SHARE, so that `open_session`, which takes EXCLUSIVE, adds no limit meanwhile.

-- name: concerned
-- Lock the limits that an exchange may change, where there are any.
-- Inputs: the time; the session; seqs that it settles; queues and names that are asked for; floors by
--   lane
-- Result: the names that are locked: of jobs that it settles, of lanes asked for that hold jobs, and of
--   jobs that are to be promoted. An idle fleet must not queue up at a limit
-- Locks: gates, in the order of their names. The caller holds the table, so that no new one is made
-- Atomic: held until the transaction ends; who reads a limit then reads its latest state
CREATE OR REPLACE FUNCTION {schema}.concerned_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_floor_lanes int4[],
    p_floors int8[]
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
        LEFT JOIN unnest(p_floor_lanes, p_floors) AS f (lane, floor) ON f.lane = a.id
        WHERE EXISTS (
            SELECT FROM {schema}.ready r
            WHERE r.lane = a.id AND (r.due >= f.floor OR f.floor IS NULL OR a.late OR f.floor > p_now)
        )
    );
    PERFORM FROM {schema}.gate WHERE name = ANY (concerned) ORDER BY name FOR NO KEY UPDATE;
    RETURN concerned;
END $$;

-- name: lock_gates
-- Lock all limits before leases end, and keep new ones from being made meanwhile.
-- Result: whether there is any limit
-- Locks: the tables `gate` and `paused` in ROW SHARE; gates, in the order of their names
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION {schema}.lock_gates_1() RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.gate, {schema}.paused IN ROW SHARE MODE;
    PERFORM FROM {schema}.gate ORDER BY name FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;

-- name: open_gate
-- Give places under limits back.
-- Inputs: the lanes of leases that ended, one entry a lease
-- Result: the lanes whose names have a limit
-- Locks: gates, in the order of their names
-- Atomic: one update a gate, by the number of places
CREATE OR REPLACE FUNCTION {schema}.open_gate_1(p_lanes int4[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    rung int4[];
BEGIN
    WITH freed AS (
        SELECT a.name, count(*) AS places, array_agg(DISTINCT a.id) AS lanes
        FROM unnest(p_lanes) u JOIN {schema}.lane a ON a.id = u GROUP BY a.name
    ), opened AS (
        UPDATE {schema}.gate g SET held = g.held - f.places FROM freed f WHERE g.name = f.name
        RETURNING f.lanes
    )
    SELECT array_agg(l) INTO rung FROM opened, unnest(lanes) l;
    RETURN rung;
END $$;

-- name: fill_gates
-- Count what an exchange handed out against the limits.
-- Inputs: the session, its exchange
-- Locks: gates, which the exchange holds already
-- Atomic: one update a gate, by the number of places
CREATE OR REPLACE FUNCTION {schema}.fill_gates_1(p_session int4, p_number int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.gate g SET held = g.held + t.places
    FROM (
        SELECT a.name, count(*) AS places FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.number = p_number GROUP BY a.name
    ) t
    WHERE g.name = t.name;
END $$;
