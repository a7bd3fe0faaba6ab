-- Where jobs lie.
-- Inputs: their ids
-- Result: the seqs of those that are kept
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.find_1(p_ids bytea[]) RETURNS int8[]
LANGUAGE sql STABLE AS $$
    SELECT ARRAY(
        SELECT j.seq FROM nb.job j WHERE j.id = ANY (p_ids)
        UNION ALL
        SELECT d.seq FROM nb.done d, nb.horizon h WHERE d.id = ANY (p_ids)
            AND h.what = 'completed' AND (d.finished, d.seq) > (h.finished, h.seq)
    )
$$;
