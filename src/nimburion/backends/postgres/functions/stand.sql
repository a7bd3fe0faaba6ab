-- Let a job wait: in its line, or aside until it is due.
-- Inputs: the time; its seq, due time and lane; 0: no attempt ended, 1: one did, 2: one failed
-- Result: none
-- Locks: what it inserts
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.stand_1(
    p_now int8, p_seq int8, p_due int8, p_lane int4, p_tried int2
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_due > p_now THEN
        INSERT INTO nb.scheduled (due, seq, lane, tried) VALUES (p_due, p_seq, p_lane, p_tried);
    ELSIF p_due = p_now THEN
        INSERT INTO nb.ready (due, seq, lane, tried) VALUES (p_due, p_seq, p_lane, p_tried);
    ELSE
        INSERT INTO nb.ready (due, seq, lane, tried)
        VALUES (p_due, p_seq, nb.late_lane_1(p_lane), p_tried);
    END IF;
END $$;
