-- The digest of the job that is kept under an id.
-- Inputs: the id; since when such a job can have ended; whether only those that ended are meant
-- Result: the digest, NULL when there is none
-- Locks: none; reads snapshots
-- Atomic: a job ends in one step; who needs to be sure looks again after inserting
CREATE OR REPLACE FUNCTION nb.known_1(p_id bytea, p_since int8, p_ended bool DEFAULT false) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
    known bytea;
BEGIN
    IF NOT p_ended THEN
        SELECT j.digest INTO known FROM nb.job j WHERE j.id = p_id;
        IF FOUND THEN
            RETURN known;
        END IF;
    END IF;
    SELECT d.digest INTO known FROM nb.done d, nb.horizon h
    WHERE d.id = p_id AND d.finished >= p_since
        AND h.what = 'completed' AND (d.finished, d.seq) > (h.finished, h.seq)
    LIMIT 1;
    RETURN known;
END $$;
