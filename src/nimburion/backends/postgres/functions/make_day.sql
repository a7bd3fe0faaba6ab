-- Make the partition of a day, unless it is there.
-- Inputs: the partitioned table; the day
-- Result: 1 when it was made, else 0
-- Locks: the partition of all other days; 200 ms at most, as the caller has it
-- Atomic: made whole and then attached. Where rows of that day lie among the others already, they
--   stay there
CREATE OR REPLACE FUNCTION nb.make_day_1(p_table regclass, p_day date) RETURNS int4
LANGUAGE plpgsql SET search_path TO pg_catalog, pg_temp AS $$
DECLARE
    ours record;
    part text;
    first int8 := CAST(extract(epoch FROM p_day) * 1000000 AS int8);
BEGIN
    SELECT n.nspname, c.relname INTO ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table;
    part := ours.relname || '_d' || to_char(p_day, 'YYYYMMDD');
    IF to_regclass(format('%I.%I', ours.nspname, part)) IS NOT NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING DEFAULTS) WITH (
        autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 20000
    )', ours.nspname, part, p_table);
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I FOR VALUES FROM (%s) TO (%s)', p_table,
        ours.nspname, part, first, first + 86400000000);
    RETURN 1;
EXCEPTION WHEN lock_not_available OR check_violation OR duplicate_table THEN
    RETURN 0;
END $$;
