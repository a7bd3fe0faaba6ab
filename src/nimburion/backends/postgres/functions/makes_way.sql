-- Whether the previous job of a schedule lets the next one in.
-- Inputs: the time or NULL; the id of that job (NULL: there is none); the overlap rule
-- Result: whether
-- Locks: where the rule says so, as `cancel_1`
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.makes_way_1(p_now int8, p_id bytea, p_overlap text) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    previous record;
BEGIN
    SELECT r.place, r.failures INTO previous FROM nb.record r WHERE r.id = p_id AND r.place IN ('w', 'l');
    IF NOT FOUND OR p_overlap = 'allow' THEN
        RETURN true;
    END IF;
    IF p_overlap = 'cancel_previous' THEN
        PERFORM nb.cancel_1(p_now, p_id);
        RETURN true;
    END IF;
    RETURN p_overlap = 'queue_one' AND (previous.place = 'l' OR previous.failures > 0);
END $$;
