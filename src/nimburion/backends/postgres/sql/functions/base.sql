-- Functions that all others use: time, lanes, the places where a job waits, notifications, packed arguments.
--
-- `{schema}.` stands for schema and prefix; each function ends in its format (`_1`), so that neighbouring versions can run
-- together. A call is one statement and one transaction at READ COMMITTED.
--
-- Order of locks, for every function: the advisory lock of the session; the tables of limits and pauses; limits by name;
-- unique keys by name and key; then rows of jobs, those that another transaction holds being passed over.
--
-- Advisory locks, by their second number (`hashtextextended(TEXT, NUMBER)`):
--   7041  the id of a session      its exchanges, its opening and closing, its rescue come one after the other
--   7042  'maintain_partitions_1'                 one transaction at a time makes and drops partitions
--   7043  the channel              one enqueue at a time notifies in its own transaction
--   7044  'count_new_finished_1'                counting what ended excludes deleting it

-- name: get_write_time
-- The backend's time in whole microseconds.
-- Inputs: the time of a test's clock, or NULL
-- Result: that, or the server's
-- Locks: none. Takes a transaction number first: whoever has none yet takes a later time, which is
--   what lets a claim pass by what lies before its low_water_mark
CREATE OR REPLACE FUNCTION {schema}.get_write_time_1(p_now int8) RETURNS int8
LANGUAGE sql AS $$
    SELECT CASE WHEN pg_current_xact_id() IS NOT NULL
        THEN coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8)) END
$$;

-- name: get_read_time
-- The backend's time in whole microseconds, for who only reads.
-- Inputs: the time of a test's clock, or NULL
-- Result: that, or the server's
CREATE OR REPLACE FUNCTION {schema}.get_read_time_1(p_now int8) RETURNS int8
LANGUAGE sql STABLE AS $$
    SELECT coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))
$$;

-- name: get_or_create_lanes
-- The numbers of lanes; those that are new are made.
-- Inputs: queues, names and ranks, side by side
-- Result: their numbers, in that order
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away, so to find one is enough
CREATE OR REPLACE FUNCTION {schema}.get_or_create_lanes_1(p_queues text[], p_names text[], p_ranks int2[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    found_ids int4[];
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT array_agg(l.id ORDER BY w.place) INTO found_ids
        FROM unnest(p_queues, p_names, p_ranks) WITH ORDINALITY AS w (queue, name, rank, place)
        LEFT JOIN LATERAL (
            SELECT l.id FROM {schema}.lane l
            WHERE l.queue = w.queue AND l.name = w.name AND l.rank = w.rank AND NOT l.is_late OFFSET 0
        ) l ON true;
        EXIT WHEN array_position(found_ids, NULL) IS NULL;
        INSERT INTO {schema}.lane (queue, name, rank)
        SELECT DISTINCT * FROM unnest(p_queues, p_names, p_ranks) ORDER BY 1, 2, 3
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN found_ids;
END $$;

-- name: get_or_create_late_lane
-- The lane where jobs of another lane stand that come back to an old place.
-- Inputs: the number of that lane
-- Result: the number of its late one, made when it is new
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away, so to find one is enough
CREATE OR REPLACE FUNCTION {schema}.get_or_create_late_lane_1(p_lane int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    late_id int4;
BEGIN
    LOOP
        SELECT b.id INTO late_id FROM {schema}.lane a JOIN {schema}.lane b
            ON b.queue = a.queue AND b.name = a.name AND b.rank = a.rank AND b.is_late
        WHERE a.id = p_lane;
        EXIT WHEN FOUND;
        INSERT INTO {schema}.lane (queue, name, rank, is_late, main_lane)
        SELECT queue, name, rank, true, id FROM {schema}.lane WHERE id = p_lane
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN late_id;
END $$;

-- name: create_lanes
-- Make lanes for a transaction that will enqueue in them.
-- Inputs: queues, names and ranks, side by side; whether their late ones too: for jobs that are to come
--   to an old place
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away
CREATE OR REPLACE FUNCTION {schema}.create_lanes_1(p_queues text[], p_names text[], p_ranks int2[], p_late bool)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lanes int4[] := {schema}.get_or_create_lanes_1(p_queues, p_names, p_ranks);
BEGIN
    IF p_late THEN
        PERFORM {schema}.get_or_create_late_lane_1(id) FROM unnest(lanes) id;
    END IF;
END $$;

-- name: get_queues_of_lanes
-- The queues of lanes.
-- Inputs: the numbers of lanes
-- Result: the names of their queues, each once
CREATE OR REPLACE FUNCTION {schema}.get_queues_of_lanes_1(p_lanes int4[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT l.queue FROM {schema}.lane l WHERE l.id = ANY (p_lanes));
END $$;

-- name: make_waiting
-- Let a job wait: in its line, or aside until it is due.
-- Inputs: the time; its seq, due time and lane; 0: no attempt ended, 1: one did, 2: one failed
CREATE OR REPLACE FUNCTION {schema}.make_waiting_1(
    p_now int8, p_seq int8, p_due int8, p_lane int4, p_attempt_status int2
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_due > p_now THEN
        INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status) VALUES (p_due, p_seq, p_lane, p_attempt_status);
    ELSIF p_due = p_now THEN
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status) VALUES (p_due, p_seq, p_lane, p_attempt_status);
    ELSE
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        VALUES (p_due, p_seq, {schema}.get_or_create_late_lane_1(p_lane), p_attempt_status);
    END IF;
END $$;

-- name: remove_waiting
-- Take a waiting job out of its line, or from those that are not due.
-- Inputs: its lane, due time and seq
-- Result: whether it was there
-- Atomic: each delete is one step
CREATE OR REPLACE FUNCTION {schema}.remove_waiting_1(p_lane int4, p_due int8, p_seq int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.scheduled WHERE due = p_due AND seq = p_seq;
    IF FOUND THEN
        RETURN true;
    END IF;
    DELETE FROM {schema}.ready r USING {schema}.lane a, {schema}.lane b
    WHERE a.id = p_lane AND b.queue = a.queue AND b.name = a.name AND b.rank = a.rank
        AND r.lane = b.id AND r.due = p_due AND r.seq = p_seq;
    RETURN FOUND;
END $$;

-- name: notify_queues
-- Ring queues when the caller's own transaction commits, and not at all when it does not.
-- Inputs: the channel; the queues
-- Locks: the one of all notifying commits of a database, at the commit
-- Atomic: the server sends it with the commit. A teller without a name rings everybody
CREATE OR REPLACE FUNCTION {schema}.notify_queues_1(p_channel text, p_queues text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    said text := E'\n' || array_to_string(ARRAY(SELECT DISTINCT q FROM unnest(p_queues) q ORDER BY q), E'\n');
BEGIN
    IF cardinality(p_queues) > 0 THEN
        PERFORM pg_notify(p_channel, CASE WHEN octet_length(said) > 7000 THEN E'\n*' ELSE said END);
    END IF;
END $$;

-- name: decode_hex_array
-- The elements of a JSON array of hexadecimal digits as bytes.
-- Inputs: the array
-- Result: the bytes, in order
CREATE OR REPLACE FUNCTION {schema}.decode_hex_array_1(p_array json) RETURNS bytea[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY(SELECT decode(e, 'hex') FROM json_array_elements_text(p_array) e)
$$;

-- name: decode_text_array
-- The elements of a JSON array as texts.
-- Inputs: the array, or the JSON word null
-- Result: the texts, in order; NULL for no array
CREATE OR REPLACE FUNCTION {schema}.decode_text_array_1(p_array json) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN json_typeof(p_array) = 'array' THEN ARRAY(SELECT json_array_elements_text(p_array)) END
$$;

-- name: get_state_code
-- The state of a job.
-- Inputs: its place, failures and due time as `job_record` has them; the time
-- Result: P pending, S scheduled, R retrying, L processing, C completed, F failed, X cancelled
CREATE OR REPLACE FUNCTION {schema}.get_state_code_1(p_status text, p_failures int4, p_due int8, p_now int8) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_status <> 'w' THEN upper(p_status) WHEN p_failures > 0 THEN 'R'
        WHEN p_due > p_now THEN 'S' ELSE 'P' END
$$;
