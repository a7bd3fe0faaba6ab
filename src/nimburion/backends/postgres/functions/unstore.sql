-- Take back jobs that this transaction has stored.
-- Inputs: their seqs
-- Result: none
-- Locks: nothing that others see
-- Atomic: of the transaction that stored them
CREATE OR REPLACE FUNCTION nb.unstore_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH j AS (DELETE FROM nb.job WHERE seq = ANY (p_seqs) RETURNING seq, due, lane),
    s AS (DELETE FROM nb.scheduled s USING j WHERE s.due = j.due AND s.seq = j.seq)
    DELETE FROM nb.ready r USING j, nb.lane a, nb.lane b
    WHERE a.id = j.lane AND b.queue = a.queue AND b.name = a.name AND b.rank = a.rank
        AND r.lane = b.id AND r.due = j.due AND r.seq = j.seq;
    DELETE FROM nb.unique_key WHERE seq = ANY (p_seqs);
END $$;
