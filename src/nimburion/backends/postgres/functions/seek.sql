-- The jobs that a filter means, newest first.
-- Inputs: the time; letters of the states (P S R L C F X; NULL: any); queue, name, reason and ids
--   (NULL: any); seqs lie before this one; at most so many
-- Result: their seqs and letters
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.seek_1(
    p_now int8, p_states text, p_queue text, p_name text, p_reason text, p_ids bytea[], p_after int8,
    p_limit int4
) RETURNS TABLE (seq int8, letter text)
LANGUAGE sql STABLE AS $$
    SELECT s.seq, s.letter FROM (
        SELECT r.seq, nb.letter_1(r.place, r.failures, r.due, p_now) AS letter
        FROM nb.record r JOIN nb.lane a ON a.id = r.lane
        WHERE r.seq < p_after AND (p_ids IS NULL OR r.id = ANY (p_ids))
            AND (p_queue IS NULL OR a.queue = p_queue) AND (p_name IS NULL OR a.name = p_name)
            AND (p_reason IS NULL OR r.reason = p_reason)
    ) s
    WHERE p_states IS NULL OR strpos(p_states, s.letter) > 0
    ORDER BY s.seq DESC LIMIT p_limit
$$;
