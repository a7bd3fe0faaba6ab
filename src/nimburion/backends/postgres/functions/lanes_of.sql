-- The lanes of the jobs that an exchange handed out.
-- Inputs: the session, its exchange
-- Result: their numbers
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.lanes_of_1(p_session int4, p_number int8) RETURNS int4[]
LANGUAGE sql STABLE AS $$
    SELECT array_agg(DISTINCT l.lane) FROM nb.lease l
    WHERE l.session = p_session AND l.number = p_number
$$;
