-- Take a job back that its worker did not settle, as it was before.
-- Inputs: the time; its lease, that is gone; losses to count, with the history entry of the loss
--   (NULL: none)
-- Result: what is known of it, as a row of `past`
-- Locks: the job's own rows
-- Atomic: of the caller's transaction, which took the lease away
CREATE OR REPLACE FUNCTION nb.end_lease_1(p_now int8, p_lease nb.lease, p_loss bytea) RETURNS nb.past
LANGUAGE plpgsql AS $$
DECLARE
    so_far nb.past := ROW(p_lease.seq, p_lease.due, p_lease.at, p_lease.fence, p_lease.failures,
        p_lease.lost, p_lease.noted, p_lease.settled);
BEGIN
    IF p_loss IS NOT NULL THEN
        PERFORM nb.note_1(p_lease.seq, p_now, p_loss);
        so_far.lost := so_far.lost + 1;
        so_far.noted := so_far.noted | 1;
    END IF;
    RETURN so_far;
END $$;
