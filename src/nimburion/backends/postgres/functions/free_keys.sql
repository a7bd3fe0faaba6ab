-- Give back the unique keys of jobs that ended, unless they are held for a stated time.
-- Inputs: their seqs, lanes and keys, side by side
-- Result: the lanes of those whose keys are free now
-- Locks: the keys, in the order of name and key
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.free_keys_1(p_seqs int8[], p_lanes int4[], p_keys text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    rung int4[];
BEGIN
    WITH freed AS (
        DELETE FROM nb.unique_key WHERE ctid = ANY (ARRAY(
            SELECT u.ctid FROM unnest(p_seqs, p_lanes, p_keys) AS k (seq, lane, key)
            JOIN nb.lane a ON a.id = k.lane
            JOIN nb.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
            WHERE u.until IS NULL
            ORDER BY u.name, u.key FOR UPDATE OF u
        )) RETURNING seq
    )
    SELECT array_agg(DISTINCT k.lane) INTO rung
    FROM unnest(p_seqs, p_lanes) AS k (seq, lane) WHERE k.seq IN (SELECT seq FROM freed);
    RETURN rung;
END $$;
