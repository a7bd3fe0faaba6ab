-- What became so far of a job that is not new.
-- Inputs: its seq
-- Result: its row of `past`
-- Locks: none; reads a snapshot
-- Atomic: one look. A function, so that who hands out new jobs has no part of it in his plan
CREATE OR REPLACE FUNCTION nb.past_of_1(p_seq int8) RETURNS nb.past
LANGUAGE plpgsql STABLE AS $$
DECLARE
    so_far nb.past;
BEGIN
    SELECT * INTO so_far FROM nb.past p WHERE p.seq = p_seq;
    RETURN so_far;
END $$;
