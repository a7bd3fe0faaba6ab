-- The merge of the first jobs of several lanes, in the order in which they are to be handed out.
-- A job is ranked by the worst key from the front of its line up to itself (decision 0001).
-- Inputs: the time; the ageing span, 0 for none; the lanes as `open_lines_1` answers them; how many
--   of each to read
-- Result: place in the merge, which of the lanes it is in, whether it is the last that was read of a
--   lane that may go on; first first
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.merge_1(
    p_now int8, p_ageing int8, p_ids int4[], p_groups int4[], p_ranks int2[], p_levels int8[],
    p_floors int8[], p_chunks int4[]
) RETURNS TABLE (place int8, line int4, is_end bool)
LANGUAGE sql STABLE AS $$
    SELECT row_number() OVER (ORDER BY m.worst, m.rank, m.due, m.seq), m.line,
        m.nth = m.chunk
    FROM (
        SELECT c.*, max(ARRAY[
                -c.level - CASE WHEN p_ageing > 0 AND p_now > c.due THEN (p_now - c.due) / p_ageing ELSE 0 END,
                c.rank, c.due, c.seq
            ]) OVER (PARTITION BY c.grp ORDER BY c.rank, c.due, c.seq ROWS UNBOUNDED PRECEDING) AS worst
        FROM (
            SELECT CAST(w.line AS int4) AS line, w.grp, w.rank, w.level, w.chunk, r.due, r.seq,
                row_number() OVER (PARTITION BY w.line ORDER BY r.due, r.seq) AS nth
            FROM unnest(p_ids, p_groups, p_ranks, p_levels, p_floors, p_chunks) WITH ORDINALITY
                AS w (id, grp, rank, level, floor, chunk, line),
            LATERAL (
                SELECT r.due, r.seq FROM nb.ready r WHERE r.lane = w.id AND r.due >= w.floor
                ORDER BY r.due, r.seq LIMIT w.chunk
            ) r
        ) c
    ) m
    ORDER BY 1
$$;
