-- The lanes that may be handed out from.
-- Inputs: the time; queues, names and levels of what is asked for, side by side; the names whose
--   limits are locked, NULL without any; lanes before whose due times, side by side, nothing stands,
--   as far as known: there is no such time in late ones, nor when the clock was set back
-- Result: arrays side by side, a place for each lane: its number, that of the lane it is the late one
--   of, which of those asked for it belongs to, rank, level, floor; and arrays by what is asked for:
--   room under the limit of its name (NULL: none)
-- Locks: none; reads a snapshot
-- Atomic: the caller holds the tables of limits and pauses
CREATE OR REPLACE FUNCTION nb.open_lines_1(
    p_now int8, p_queues text[], p_names text[], p_levels int8[], p_locked text[],
    p_floor_lanes int4[], p_floors int8[],
    OUT ids int4[], OUT homes int4[], OUT groups int4[], OUT ranks int2[], OUT levels int8[],
    OUT floors int8[], OUT rooms int4[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(o.id), array_agg(o.home), array_agg(o.place), array_agg(o.rank),
        array_agg(o.level), array_agg(o.floor), array_agg(o.room)
    INTO ids, homes, groups, ranks, levels, floors, rooms
    FROM (
        SELECT l.id, CASE WHEN l.late THEN h.id ELSE l.id END AS home, CAST(w.place AS int4) AS place,
            l.rank, w.level, g.bound - g.held AS room,
            CASE WHEN f.floor <= p_now AND NOT l.late THEN f.floor ELSE -9223372036854775808 END AS floor
        FROM unnest(p_queues, p_names, p_levels) WITH ORDINALITY AS w (queue, name, level, place)
        CROSS JOIN LATERAL (
            SELECT * FROM nb.lane l WHERE l.queue = w.queue AND l.name = w.name OFFSET 0
        ) l
        LEFT JOIN nb.lane h ON l.late AND h.queue = l.queue AND h.name = l.name AND h.rank = l.rank
            AND NOT h.late
        LEFT JOIN unnest(p_floor_lanes, p_floors) AS f (lane, floor) ON f.lane = l.id
        LEFT JOIN nb.gate g ON p_locked IS NOT NULL AND g.name = w.name
        WHERE NOT EXISTS (SELECT FROM nb.paused p WHERE p.queue = w.queue)
            AND (g.name IS NULL OR g.bound > g.held AND g.name = ANY (p_locked))
        ORDER BY w.place, l.rank, l.late
    ) o;
END $$;
