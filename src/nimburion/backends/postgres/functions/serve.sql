-- Hand out the first of what is asked for.
-- Inputs: the time; the session, its exchange and its nonce; how many; the ageing span; what is asked
--   for, side by side: queues, names, levels, caps (NULL: none); the open lanes as `open_lines_1`
--   answers them
-- Result: rows of kind 1, a job each
-- Locks: the rows it takes out of the lines
-- Atomic: of the caller's transaction, which holds the gates
CREATE OR REPLACE FUNCTION nb.serve_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_total int4, p_ageing int8,
    p_queues text[], p_names text[], p_caps int4[], p_ids int4[], p_homes int4[], p_groups int4[],
    p_ranks int2[], p_levels int8[], p_floors int8[], p_rooms int4[]
) RETURNS SETOF nb.reply
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(p_ids) = 1 THEN
        RETURN QUERY SELECT * FROM nb.take_line_1(p_now, p_session, p_number, p_nonce, p_ids[1],
            p_homes[1], p_floors[1],
            LEAST(p_total, coalesce(p_caps[p_groups[1]], p_total), coalesce(p_rooms[1], p_total)));
    ELSE
        RETURN QUERY SELECT * FROM nb.take_1(p_now, p_session, p_number, p_nonce, p_ageing, p_ids,
            p_homes, p_groups, p_ranks, p_levels, p_floors,
            nb.look_1(p_total, p_now, p_ageing, p_ids, p_groups, p_ranks, p_levels, p_floors, p_rooms,
                p_queues, p_names, p_caps));
    END IF;
    IF EXISTS (SELECT FROM unnest(p_rooms) r WHERE r IS NOT NULL) THEN
        UPDATE nb.gate g SET held = g.held + t.places
        FROM (
            SELECT a.name, count(*) AS places FROM nb.lease l JOIN nb.lane a ON a.id = l.lane
            WHERE l.session = p_session AND l.number = p_number GROUP BY a.name
        ) t
        WHERE g.name = t.name;
    END IF;
END $$;
