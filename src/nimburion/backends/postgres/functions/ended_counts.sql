-- How many completed and cancelled jobs are kept.
-- Inputs: the lanes, NULL for all
-- Result: rows of state and number, several for one state
-- Locks: none; reads a snapshot
-- Atomic: one statement. What `tally_1` counted is not counted again, but for that part of the horizon
--   lies in
CREATE OR REPLACE FUNCTION nb.ended_counts_1(p_lanes int4[]) RETURNS TABLE (state int2, number int8)
LANGUAGE sql STABLE SET enable_seqscan TO off SET jit TO off AS $$
    WITH h AS (SELECT finished, seq FROM nb.horizon WHERE what = 'completed'),
    e AS (
        SELECT coalesce(max(t.upto) FILTER (
                WHERE (t.since, 0) < (h.finished, h.seq) AND t.upto > h.finished
            ), h.finished) AS part, GREATEST(max(t.upto), h.finished) AS last
        FROM h LEFT JOIN nb.tally t ON true GROUP BY h.finished
    )
    SELECT t.state, CAST(sum(t.number) AS int8) FROM nb.tally t
    WHERE (t.since, 0) >= (SELECT finished, seq FROM h) AND (p_lanes IS NULL OR t.lane = ANY (p_lanes)) GROUP BY t.state
    UNION ALL
    SELECT d.state, count(*) FROM nb.done d
    WHERE d.finished >= (SELECT finished FROM h) AND d.finished < (SELECT part FROM e)
        AND (d.finished > (SELECT finished FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
    UNION ALL
    SELECT d.state, count(*) FROM nb.done d
    WHERE d.finished >= (SELECT last FROM e)
        AND (d.finished > (SELECT finished FROM h) OR d.seq > (SELECT seq FROM h))
        AND (p_lanes IS NULL OR d.lane = ANY (p_lanes)) GROUP BY d.state
$$;
