-- Health checks: what they read from the server. They take no lock and write nothing.

-- name: examined_server
-- Read the state and the settings of the server.
-- Result: one row:
--   version, "user"                           the version of the server; the current role
--   fsync, full_page_writes, synchronous_commit, synchronous_standbys, autovacuum
--                                             settings
--   standby                                   whether the server is a standby
--   time                                      the server's time in seconds
--   connections, most_connections, reserved_connections
--                                             open connections; their maximum; how many are reserved for superusers
--   unfrozen                                  the age, in transactions, of the oldest unfrozen row of this database
--   bytes                                     the size of this database
SELECT
    current_setting('server_version') AS version,
    CAST(current_user AS text) AS "user",
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standbys,
    current_setting('autovacuum') AS autovacuum,
    pg_is_in_recovery() AS standby,
    CAST(extract(epoch FROM clock_timestamp()) AS float8) AS time,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
    CAST(current_setting('max_connections') AS int4) AS most_connections,
    CAST(current_setting('superuser_reserved_connections') AS int4) AS reserved_connections,
    (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()) AS unfrozen,
    pg_database_size(current_database()) AS bytes;

-- name: examined_tables
-- Read the sizes and the vacuum state of the tables of the backend.
-- Inputs: the schema
-- Result: one row for each table:
--   name              its name
--   bytes             its size with indexes
--   live, dead        estimated numbers of live and dead rows
--   vacuumed          seconds since it was vacuumed; NULL: never since the statistics began
--   switched_off      whether autovacuum is off for this table
SELECT
    CAST(c.relname AS text) AS name,
    pg_total_relation_size(c.oid) AS bytes,
    coalesce(s.n_live_tup, 0) AS live,
    coalesce(s.n_dead_tup, 0) AS dead,
    CAST(extract(epoch FROM now() - greatest(s.last_vacuum, s.last_autovacuum)) AS float8) AS vacuumed,
    coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false) AS switched_off
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = $1 AND c.relkind = 'r'
ORDER BY c.relname;

-- name: examined_snapshots
-- Find what prevents the removal of dead rows: the oldest session, prepared transaction and replication slot.
-- Result: one row for each kind that exists:
--   kind              session, prepared transaction or replication slot
--   whose             its owner
--   seconds           its age in seconds; NULL: not known
--   transactions      its age in transactions
-- Only a member of pg_read_all_stats can see the sessions of other roles.
(SELECT
    'session' AS kind,
    format('pid %s of %s (%s)', pid, usename, state) AS whose,
    CAST(extract(epoch FROM clock_timestamp() - xact_start) AS float8) AS seconds,
    age(coalesce(backend_xmin, backend_xid)) AS transactions
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND coalesce(backend_xmin, backend_xid) IS NOT NULL
    AND pid <> pg_backend_pid() AND datname = current_database()
ORDER BY xact_start LIMIT 1)
UNION ALL
(SELECT
    'prepared transaction',
    format('%s of %s', gid, owner),
    CAST(extract(epoch FROM clock_timestamp() - prepared) AS float8),
    age(transaction)
FROM pg_prepared_xacts
ORDER BY prepared LIMIT 1)
UNION ALL
(SELECT
    'replication slot',
    CAST(slot_name AS text),
    NULL,
    age(coalesce(xmin, catalog_xmin))
FROM pg_replication_slots
WHERE xmin IS NOT NULL
ORDER BY age(xmin) DESC LIMIT 1);
