-- Add to the history of a job.
-- Inputs: its seq, the time, the error as JSON
-- Result: none
-- Locks: what it inserts
-- Atomic: one statement, of a transaction that holds the job
CREATE OR REPLACE FUNCTION nb.note_1(p_seq int8, p_now int8, p_body bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nb.attempt_error (seq, n, at, body)
    SELECT p_seq, coalesce(max(n), 0) + 1, p_now, p_body FROM nb.attempt_error WHERE seq = p_seq;
END $$;
