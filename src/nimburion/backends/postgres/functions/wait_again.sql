-- Let a job wait again that nobody holds any more; or end it, where a cancel was asked for.
-- Inputs: the time; its lease, that is gone; what is known of it as a row of `past`
-- Result: whether it waits, and the lane to ring, NULL for none
-- Locks: the job's own rows
-- Atomic: of the caller's transaction, which took the lease away
CREATE OR REPLACE FUNCTION nb.wait_again_1(
    p_now int8, p_lease nb.lease, p_past nb.past, OUT waits bool, OUT rung int4
) LANGUAGE plpgsql AS $$
BEGIN
    waits := NOT p_lease.cancel;
    IF waits THEN
        PERFORM nb.remember_1(p_past);
        PERFORM nb.stand_1(p_now, p_past.seq, p_past.due, p_lease.lane,
            CAST(CASE WHEN p_past.failures > 0 THEN 2 ELSE 1 END AS int2));
        rung := CASE WHEN p_past.due <= p_now THEN p_lease.lane END;
    ELSE
        p_past.due := p_lease.due;  -- it never waited for another time
        rung := nb.finish_1(p_now, p_past, 3::int2, NULL, NULL);
    END IF;
END $$;
