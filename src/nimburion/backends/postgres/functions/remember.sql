-- Keep what became of a job so far.
-- Inputs: the row
-- Result: none
-- Locks: the row
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.remember_1(p_past nb.past) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nb.past (seq, due, started, fence, failures, lost, noted, settled)
    VALUES (p_past.seq, p_past.due, p_past.started, p_past.fence, p_past.failures, p_past.lost,
        p_past.noted, p_past.settled)
    ON CONFLICT (seq) DO UPDATE SET due = excluded.due, started = excluded.started,
        fence = excluded.fence, failures = excluded.failures, lost = excluded.lost,
        noted = excluded.noted, settled = excluded.settled;
END $$;
