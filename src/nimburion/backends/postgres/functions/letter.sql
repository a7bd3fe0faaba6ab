-- The state of a job.
-- Inputs: its place, failures and due time as `record` has them; the time
-- Result: P pending, S scheduled, R retrying, L processing, C completed, F failed, X cancelled
-- Locks: none
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION nb.letter_1(p_place text, p_failures int4, p_due int8, p_now int8) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_place <> 'w' THEN upper(p_place) WHEN p_failures > 0 THEN 'R'
        WHEN p_due > p_now THEN 'S' ELSE 'P' END
$$;
