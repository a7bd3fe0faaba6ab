-- Take a waiting job out of its line, or from those that are not due.
-- Inputs: its lane, due time and seq
-- Result: whether it was there
-- Locks: its place
-- Atomic: each delete is one step
CREATE OR REPLACE FUNCTION nb.displace_1(p_lane int4, p_due int8, p_seq int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM nb.scheduled WHERE due = p_due AND seq = p_seq;
    IF FOUND THEN
        RETURN true;
    END IF;
    DELETE FROM nb.ready r USING nb.lane a, nb.lane b
    WHERE a.id = p_lane AND b.queue = a.queue AND b.name = a.name AND b.rank = a.rank
        AND r.lane = b.id AND r.due = p_due AND r.seq = p_seq;
    RETURN FOUND;
END $$;
