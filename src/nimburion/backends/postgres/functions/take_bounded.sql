-- As `take_1`, where payloads may be large: hand out no more than so many bytes.
-- Inputs: the time; the session, its exchange and its nonce; the ageing span; the lanes as
--   `open_lines_1` answers them; how many of each; the most bytes of deliveries
-- Result: a row for each job; its kind is its place in the merge. What is behind the first so many bytes
--   goes back to its place in line, but for the first job
-- Locks: the rows it takes out of the lines; those that another holds are passed over
-- Atomic: one statement moves them
CREATE OR REPLACE FUNCTION nb.take_bounded_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_ageing int8, p_ids int4[],
    p_homes int4[], p_groups int4[], p_ranks int2[], p_levels int8[], p_floors int8[], p_counts int4[],
    p_max_bytes int8
) RETURNS SETOF nb.reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH t AS (
        DELETE FROM nb.ready r WHERE r.ctid = ANY (ARRAY(
            SELECT f.ctid FROM unnest(p_ids, p_floors, p_counts) AS w (id, floor, most),
            LATERAL (
                SELECT r.ctid FROM nb.ready r WHERE r.lane = w.id AND r.due >= w.floor
                ORDER BY r.due, r.seq LIMIT w.most FOR UPDATE SKIP LOCKED
            ) f
        )) RETURNING r.lane, r.due, r.seq, r.tried
    ), m AS (
        SELECT t.*, w.home, w.rank, w.grp, max(ARRAY[
                -w.level - CASE WHEN p_ageing > 0 AND p_now > t.due THEN (p_now - t.due) / p_ageing ELSE 0 END,
                w.rank, t.due, t.seq
            ]) OVER (PARTITION BY w.grp ORDER BY w.rank, t.due, t.seq ROWS UNBOUNDED PRECEDING) AS worst
        FROM t, LATERAL (SELECT array_position(p_ids, t.lane) AS line) n,
        LATERAL (
            SELECT p_homes[n.line] AS home, p_groups[n.line] AS grp, p_ranks[n.line] AS rank,
                p_levels[n.line] AS level
        ) w
    ), x AS (
        SELECT m.*, CASE WHEN m.tried > 0 THEN nb.past_of_1(m.seq) END AS p,
            CAST(row_number() OVER o AS int4) AS place, j.created, j.lane AS at_first, j.id, j.options,
            j.payload, sum(nb.size_1(j.payload, j.options)) OVER o AS bytes
        FROM m, LATERAL (SELECT * FROM nb.job j WHERE j.seq = m.seq OFFSET 0) j
        WINDOW o AS (ORDER BY m.worst, m.rank, m.due, m.seq)
    ), b AS (
        INSERT INTO nb.ready (due, seq, lane, tried)
        SELECT x.due, x.seq, x.lane, x.tried FROM x WHERE x.bytes > p_max_bytes AND x.place > 1
    ), l AS (
        INSERT INTO nb.lease (seq, due, at, number, session, lane, place, fence, failures, lost, tried,
            noted, nonce, settled)
        SELECT x.seq, x.due, p_now, p_number, p_session, x.home, x.place, coalesce((x.p).fence, 0) + 1,
            coalesce((x.p).failures, 0), coalesce((x.p).lost, 0), x.tried,
            coalesce((x.p).noted, 0::int2), p_nonce, (x.p).settled
        FROM x WHERE x.bytes <= p_max_bytes OR x.place = 1
    )
    SELECT x.place, x.seq, x.due, x.created, x.at_first, coalesce((x.p).fence, 0) + 1,
        coalesce((x.p).failures, 0), coalesce((x.p).lost, 0), x.id, x.options, x.payload,
        NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::text[], NULL::int4[], NULL::int4[],
        NULL::int8[]
    FROM x WHERE x.bytes <= p_max_bytes OR x.place = 1;
END $$;
