-- The jobs that a filter means, newest first.
-- Inputs: the time; letters of the states (P S R L C F X; NULL: any); queue, name, reason and ids
--   (NULL: any); seqs lie before this one; at most so many
-- Result: their seqs, letters and ids
-- Locks: none; reads snapshots
-- Atomic: of the caller's transaction. It walks down the seqs in growing steps: history has no index
--   that is in their order
CREATE OR REPLACE FUNCTION nb.seek_1(
    p_now int8, p_states text, p_queue text, p_name text, p_reason text, p_ids bytea[], p_after int8,
    p_limit int4
) RETURNS TABLE (seq int8, letter text, id bytea)
LANGUAGE plpgsql STABLE SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    lanes int4[] := CASE WHEN p_queue IS NOT NULL OR p_name IS NOT NULL THEN ARRAY(
        SELECT a.id FROM nb.lane a WHERE a.queue = coalesce(p_queue, a.queue) AND a.name = coalesce(p_name, a.name)
    ) END;
    past_end int8 := LEAST(p_after, nb.newest_1() + 1);
    low int8;
    width int8 := 1000;
    room int4 := p_limit;
    found int4;
BEGIN
    IF p_ids IS NOT NULL THEN
        RETURN QUERY SELECT r.seq, r.letter, r.id FROM (
            SELECT k.*, nb.letter_1(k.place, k.failures, k.due, p_now) AS letter FROM nb.record k
            WHERE k.id = ANY (p_ids)
        ) r
        WHERE r.seq < p_after AND (p_states IS NULL OR strpos(p_states, r.letter) > 0)
            AND (lanes IS NULL OR r.lane = ANY (lanes)) AND (p_reason IS NULL OR r.reason = p_reason)
        ORDER BY r.seq DESC LIMIT p_limit;
        RETURN;
    END IF;
    WHILE past_end > 0 AND room > 0 LOOP
        low := past_end - width;
        IF p_states = 'F' THEN
            RETURN QUERY SELECT d.seq, 'F', j.id FROM nb.dead d JOIN nb.job j ON j.seq = d.seq
            WHERE d.seq < past_end AND (lanes IS NULL OR j.lane = ANY (lanes))
                AND (p_reason IS NULL OR d.reason = p_reason)
            ORDER BY d.seq DESC LIMIT room;
            RETURN;
        ELSIF p_states !~ '[CX]' THEN
            RETURN QUERY SELECT r.seq, r.letter, r.id FROM (
                SELECT k.*, nb.letter_1(k.place, k.failures, k.due, p_now) AS letter FROM nb.record_whole k
                WHERE k.seq >= low AND k.seq < past_end
            ) r
            WHERE strpos(p_states, r.letter) > 0 AND (lanes IS NULL OR r.lane = ANY (lanes))
                AND (p_reason IS NULL OR r.reason = p_reason)
            ORDER BY r.seq DESC LIMIT room;
        ELSE
            RETURN QUERY SELECT r.seq, r.letter, r.id FROM (
                SELECT k.*, nb.letter_1(k.place, k.failures, k.due, p_now) AS letter FROM nb.record k
                WHERE k.seq >= low AND k.seq < past_end
            ) r
            WHERE (p_states IS NULL OR strpos(p_states, r.letter) > 0)
                AND (lanes IS NULL OR r.lane = ANY (lanes)) AND (p_reason IS NULL OR r.reason = p_reason)
            ORDER BY r.seq DESC LIMIT room;
        END IF;
        GET DIAGNOSTICS found = ROW_COUNT;
        room := room - found;
        past_end := low;
        width := LEAST(4 * width, 1000000);
    END LOOP;
END $$;
