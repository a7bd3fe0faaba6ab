-- Lease the first jobs of one lane to a session, and hand them out: `take_1` where nothing is merged.
-- Inputs: the time; the session, its exchange and its nonce; the lane, the one it is the late one of,
--   a due time before which nothing stands in it; how many
-- Result: rows of kind 1, a job each, first first
-- Locks: the rows it takes out of the line; those that another holds are passed over
-- Atomic: one statement moves them
CREATE OR REPLACE FUNCTION nb.take_line_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_lane int4, p_home int4, p_floor int8,
    p_count int4
) RETURNS SETOF nb.reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH t AS (
        DELETE FROM nb.ready r WHERE r.ctid = ANY (ARRAY(
            SELECT r.ctid FROM nb.ready r WHERE r.lane = p_lane AND r.due >= p_floor
            ORDER BY r.due, r.seq LIMIT p_count FOR UPDATE SKIP LOCKED
        )) RETURNING r.due, r.seq, r.tried
    ), x AS (
        SELECT t.*, coalesce(p.fence, 0) + 1 AS fence, coalesce(p.failures, 0) AS failures,
            coalesce(p.lost, 0) AS lost, coalesce(p.noted, 0::int2) AS noted, p.settled,
            CAST(row_number() OVER (ORDER BY t.due, t.seq) AS int4) AS place
        FROM t LEFT JOIN nb.past p ON p.seq = CASE WHEN t.tried > 0 THEN t.seq END
    ), l AS (
        INSERT INTO nb.lease (seq, due, at, number, session, lane, place, fence, failures, lost, tried,
            noted, nonce, settled)
        SELECT x.seq, x.due, p_now, p_number, p_session, p_home, x.place, x.fence, x.failures, x.lost,
            x.tried, x.noted, p_nonce, x.settled
        FROM x
    )
    SELECT 1, x.seq, x.due, j.created, j.lane, x.fence, x.failures, x.lost, j.id, j.options, j.payload,
        NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::int4[], NULL::int4[], NULL::int8[]
    FROM x JOIN nb.job j ON j.seq = x.seq
    ORDER BY x.place;
END $$;
