-- What ended first behind a place.
-- Inputs: `completed` or `result`; the place; the moment before which it ended; at most so many
-- Result: how many, and the place of the last of them
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.ended_1(
    p_what text, p_finished int8, p_seq int8, p_before int8, p_most int4
) RETURNS TABLE (number int4, finished int8, seq int8)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off AS $$
BEGIN
    IF p_what = 'completed' THEN
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished),
            (array_agg(d.seq ORDER BY d.finished DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished, d.seq FROM nb.done d
            WHERE d.finished >= p_finished AND d.finished < p_before
                AND (d.finished, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished, d.seq LIMIT p_most
        ) d;
    ELSE
        RETURN QUERY SELECT CAST(count(*) AS int4), max(d.finished),
            (array_agg(d.seq ORDER BY d.finished DESC, d.seq DESC))[1]
        FROM (
            SELECT d.finished, d.seq FROM nb.result d
            WHERE d.finished >= p_finished AND d.finished < p_before
                AND (d.finished, d.seq) > (p_finished, p_seq)
            ORDER BY d.finished, d.seq LIMIT p_most
        ) d;
    END IF;
END $$;
