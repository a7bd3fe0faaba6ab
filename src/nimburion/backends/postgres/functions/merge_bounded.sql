-- As the merge, where caps of queues or limits of names let only so many pass.
-- Inputs: as `look_1`; and how many of each lane to read
-- Result: how many to take from each lane; those of which more must be read to know, NULL for none
-- Locks: none; reads a snapshot
-- Atomic: a look
CREATE OR REPLACE FUNCTION nb.merge_bounded_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_groups int4[], p_ranks int2[],
    p_levels int8[], p_floors int8[], p_rooms int4[], p_chunks int4[], p_queues text[],
    p_names text[], p_caps int4[], OUT counts int4[], OUT short int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    queue_of int4[];
    name_of int4[];
    queue_room int4[];
    name_room int4[];
    taken int4 := 0;
    one record;
    q int4;
    n int4;
BEGIN
    counts := array_fill(0, ARRAY[cardinality(p_ids)]);
    SELECT array_agg(array_position(p_queues, p_queues[g.grp]) ORDER BY g.line),
        array_agg(array_position(p_names, p_names[g.grp]) ORDER BY g.line)
    INTO queue_of, name_of
    FROM unnest(p_groups) WITH ORDINALITY AS g (grp, line);
    SELECT array_agg(coalesce(c, p_total)) INTO queue_room FROM unnest(p_caps) c;
    name_room := array_fill(p_total, ARRAY[cardinality(p_names)]);
    FOR i IN 1..cardinality(p_ids) LOOP
        IF p_rooms[i] IS NOT NULL THEN
            name_room[name_of[i]] := p_rooms[i];
        END IF;
    END LOOP;
    FOR one IN
        SELECT * FROM nb.merge_1(p_now, p_ageing, p_ids, p_groups, p_ranks, p_levels, p_floors, p_chunks)
    LOOP
        q := queue_of[one.line];
        n := name_of[one.line];
        CONTINUE WHEN queue_room[q] <= 0 OR name_room[n] <= 0;
        counts[one.line] := counts[one.line] + 1;
        queue_room[q] := queue_room[q] - 1;
        name_room[n] := name_room[n] - 1;
        taken := taken + 1;
        EXIT WHEN taken = p_total;
        IF one.is_end AND queue_room[q] > 0 AND name_room[n] > 0 THEN
            short := short || one.line;
        END IF;
    END LOOP;
END $$;
