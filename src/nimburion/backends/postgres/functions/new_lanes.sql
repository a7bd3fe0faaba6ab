-- Make lanes for a transaction that will enqueue in them.
-- Inputs: queues, names and ranks, side by side; whether their late ones too: for jobs that are to come
--   to an old place
-- Result: none
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away
CREATE OR REPLACE FUNCTION nb.new_lanes_1(p_queues text[], p_names text[], p_ranks int2[], p_late bool)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lanes int4[] := nb.lanes_1(p_queues, p_names, p_ranks);
BEGIN
    IF p_late THEN
        PERFORM nb.late_lane_1(id) FROM unnest(lanes) id;
    END IF;
END $$;
