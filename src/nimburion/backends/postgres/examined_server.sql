-- What an examination asks the server about itself.
-- Inputs: none
-- Result: one row: version; user; fsync, full_page_writes, synchronous_commit, synchronous standbys; autovacuum;
--   whether it is a standby; its time in seconds; connections that there are, that there may be, and those only for
--   superusers; age in transactions of the oldest row of this database that was never frozen; bytes of this database
-- Locks: none
-- Atomic: one statement
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
    pg_database_size(current_database()) AS bytes
