-- The backend's time in whole microseconds.
-- Inputs: the time of a test's clock, or NULL
-- Result: that, or the server's
-- Locks: none. Takes a transaction number first: whoever has none yet takes a later time, which is
--   what lets a claim pass by what lies before its floor
-- Atomic: reads a clock
CREATE OR REPLACE FUNCTION nb.clock_1(p_now int8) RETURNS int8
LANGUAGE sql AS $$
    SELECT CASE WHEN pg_current_xact_id() IS NOT NULL
        THEN coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8)) END
$$;
