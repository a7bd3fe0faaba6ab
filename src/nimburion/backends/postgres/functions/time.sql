-- The backend's time in whole microseconds, for who only reads.
-- Inputs: the time of a test's clock, or NULL
-- Result: that, or the server's
-- Locks: none
-- Atomic: reads a clock
CREATE OR REPLACE FUNCTION nb.time_1(p_now int8) RETURNS int8
LANGUAGE sql STABLE AS $$
    SELECT coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))
$$;
