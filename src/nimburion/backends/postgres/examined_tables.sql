-- What an examination asks about the tables of the backend.
-- Inputs: $1 the schema, $2 the prefix of names
-- Result: a row for each table: name without the prefix, bytes with indexes, estimated live and dead rows, seconds since
--   it was vacuumed (NULL: never since the statistics began), whether vacuuming is switched off for it
-- Locks: none
-- Atomic: one statement
SELECT
    CAST(substr(c.relname, length($2::text) + 1) AS text) AS name,
    pg_total_relation_size(c.oid) AS bytes,
    coalesce(s.n_live_tup, 0) AS live,
    coalesce(s.n_dead_tup, 0) AS dead,
    CAST(extract(epoch FROM now() - greatest(s.last_vacuum, s.last_autovacuum)) AS float8) AS vacuumed,
    coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false) AS switched_off
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = $1 AND starts_with(c.relname, $2) AND c.relkind = 'r'
ORDER BY c.relname
