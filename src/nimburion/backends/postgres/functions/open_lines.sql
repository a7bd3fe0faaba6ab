-- The lanes that may be handed out from.
-- Inputs: the time; queues, names and levels of what is asked for, side by side; the names whose
--   limits are locked, NULL without any; lanes before whose due times, side by side, nothing stands,
--   as far as known: there is no such time in late ones, nor when the clock was set back
-- Result: arrays side by side, a place for each lane: its number, that of the lane it is the late one
--   of, which of those asked for it belongs to, rank, level, floor, room under the limit of its name
--   (NULL: none), queue and name
-- Locks: none; reads a snapshot
-- Atomic: the caller holds the tables of limits and pauses
CREATE OR REPLACE FUNCTION nb.open_lines_1(
    p_now int8, p_queues text[], p_names text[], p_levels int8[], p_locked text[],
    p_floor_lanes int4[], p_floors int8[],
    OUT ids int4[], OUT homes int4[], OUT groups int4[], OUT ranks int2[], OUT levels int8[],
    OUT floors int8[], OUT rooms int4[], OUT queues text[], OUT names text[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(o.id), array_agg(o.home), array_agg(o.place), array_agg(o.rank),
        array_agg(o.level), array_agg(o.floor), array_agg(o.room), array_agg(o.queue), array_agg(o.name)
    INTO ids, homes, groups, ranks, levels, floors, rooms, queues, names
    FROM (
        SELECT l.id, coalesce(l.home, l.id) AS home, CAST(w.place AS int4) AS place, l.rank, w.level,
            w.queue, w.name, r.room,
            CASE WHEN l.late OR f.floor > p_now THEN -9223372036854775808
                ELSE coalesce(f.floor, -9223372036854775808) END AS floor
        FROM unnest(p_queues, p_names, p_levels) WITH ORDINALITY AS w (queue, name, level, place)
        CROSS JOIN LATERAL (
            SELECT * FROM nb.lane l WHERE l.queue = w.queue AND l.name = w.name OFFSET 0
        ) l
        CROSS JOIN LATERAL (SELECT p_floors[array_position(p_floor_lanes, l.id)] AS floor) f
        LEFT JOIN LATERAL (
            SELECT g.name, g.bound - g.held AS room FROM nb.gate g WHERE g.name = w.name OFFSET 0
        ) r ON true
        WHERE NOT EXISTS (SELECT FROM nb.paused p WHERE p.queue = w.queue)
            AND (r.name IS NULL OR r.room > 0 AND r.name = ANY (p_locked))
        ORDER BY w.place, l.rank, l.late
    ) o;
END $$;
