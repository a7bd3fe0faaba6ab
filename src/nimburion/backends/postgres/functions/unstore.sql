-- Take back jobs that this transaction has stored.
-- Inputs: their seqs
-- Result: none
-- Locks: nothing that others see
-- Atomic: of the transaction that stored them
CREATE OR REPLACE FUNCTION nb.unstore_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    one record;
BEGIN
    FOR one IN DELETE FROM nb.job WHERE seq = ANY (p_seqs) RETURNING seq, due, lane LOOP
        PERFORM nb.displace_1(one.lane, one.due, one.seq);
    END LOOP;
    DELETE FROM nb.unique_key WHERE seq = ANY (p_seqs);
END $$;
