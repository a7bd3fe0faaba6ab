-- The number of the newest job.
-- Inputs: none
-- Result: a seq; 0 before the first. Jobs of transactions that are not over may have it
-- Locks: none
-- Atomic: reads one number. Runs with the rights of who made the tables, as it is that of a sequence
CREATE OR REPLACE FUNCTION nb.newest_1() RETURNS int8
LANGUAGE sql STABLE SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$
    SELECT coalesce(pg_sequence_last_value(CAST(pg_get_serial_sequence('nb.job', 'seq') AS regclass)), 0)
$$;
