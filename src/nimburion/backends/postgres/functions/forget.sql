-- Drop what was kept of jobs beside their bodies.
-- Inputs: their seqs; 1: some have a history, 2: some have progress
-- Result: none
-- Locks: the rows it deletes
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.forget_1(p_seqs int8[], p_noted int2) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM nb.past WHERE seq = ANY (p_seqs);
    IF p_noted & 1 > 0 THEN
        DELETE FROM nb.attempt_error WHERE seq = ANY (p_seqs);
    END IF;
    IF p_noted & 2 > 0 THEN
        DELETE FROM nb.progress WHERE seq = ANY (p_seqs);
    END IF;
END $$;
