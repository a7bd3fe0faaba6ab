-- How many jobs to take from each lane, so that together they are the first of the merge.
-- Inputs: how many at most; the time; the ageing span in microseconds, 0 for none; the lanes as
--   `open_lines_1` answers them; by what is asked for: its queue, the cap of that, its name, and room
--   under the limit of that (NULL: none)
-- Result: a number for each lane
-- Locks: none; reads snapshots. Who locks candidates of all lanes hides them from others
-- Atomic: a look; the caller takes so many, passing over what others hold
CREATE OR REPLACE FUNCTION nb.look_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_groups int4[], p_ranks int2[],
    p_levels int8[], p_floors int8[], p_rooms int4[], p_queues text[], p_names text[], p_caps int4[]
) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    chunks int4[] := array_fill(
        LEAST(p_total, p_total / cardinality(p_ids) + 2), ARRAY[cardinality(p_ids)]);
    counts int4[];
    short int4[];
    bounded bool := EXISTS (SELECT FROM unnest(p_rooms) r WHERE r IS NOT NULL)
        OR EXISTS (SELECT FROM unnest(p_caps) c WHERE c IS NOT NULL);
BEGIN
    LOOP
        IF bounded THEN
            SELECT m.counts, m.short INTO counts, short FROM nb.merge_bounded_1(
                p_total, p_now, p_ageing, p_ids, p_groups, p_ranks, p_levels, p_floors, p_rooms,
                chunks, p_queues, p_names, p_caps
            ) m;
        ELSE
            WITH line AS (
                SELECT * FROM nb.merge_1(p_now, p_ageing, p_ids, p_groups, p_ranks, p_levels, p_floors,
                    chunks) LIMIT p_total
            )
            SELECT (SELECT array_agg(coalesce(c.taken, 0) ORDER BY n.n)
                    FROM generate_series(1, cardinality(p_ids)) n (n)
                    LEFT JOIN (SELECT line, CAST(count(*) AS int4) AS taken FROM line GROUP BY line) c ON c.line = n.n),
                (SELECT array_agg(l.line) FROM line l WHERE l.is_end
                    AND l.place < p_total)
            INTO counts, short;
        END IF;
        EXIT WHEN short IS NULL;
        FOR i IN 1..cardinality(short) LOOP
            chunks[short[i]] := LEAST(2 * chunks[short[i]], p_total + 1);
        END LOOP;
    END LOOP;
    RETURN counts;
END $$;
