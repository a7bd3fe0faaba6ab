-- Make the partitions of today and the next days, and drop those of days that are forgotten.
-- Inputs: none; the server's own clock says which day it is
-- Result: how many were made and dropped
-- Locks: a turn of its own, for who does not get it does nothing; to make one, the partition of all
--   other days, which is empty as a rule; to drop one, the whole table, in ACCESS EXCLUSIVE. Each is
--   waited for 200 ms at most, and tried again the next time
-- Atomic: each partition is made or dropped whole. Runs with the rights of who made the tables, so
--   that a role that may make none is enough for workers
CREATE OR REPLACE FUNCTION nb.days_1() RETURNS int4
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog, pg_temp
SET lock_timeout TO '200ms' AS $$
DECLARE
    changed int4 := 0;
    ours regclass;
    day date;
    one record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('nb.days_1', 7042)) THEN
        RETURN 0;
    END IF;
    FOREACH ours IN ARRAY ARRAY[CAST('nb.done' AS regclass), CAST('nb.result' AS regclass)] LOOP
        FOR ahead IN 0..3 LOOP
            day := CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date) + ahead;
            changed := changed + nb.make_day_1(ours, day);
        END LOOP;
    END LOOP;
    FOR one IN
        SELECT c.oid, c.relname, n.nspname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN nb.horizon h ON i.inhparent = CASE h.what
            WHEN 'completed' THEN CAST('nb.done' AS regclass) ELSE CAST('nb.result' AS regclass) END
        WHERE c.relname ~ '_d[0-9]{8}$'
            AND extract(epoch FROM to_date(right(c.relname, 8), 'YYYYMMDD') + 1) * 1000000 < h.finished
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %I.%I', one.nspname, one.relname);
            changed := changed + 1;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN changed;
END $$;
