-- What keeps dead rows from being removed: the oldest of each kind.
-- Inputs: none
-- Result: a row for each kind that there is: the kind, whose it is, its age in seconds (NULL where nobody notes it) and in
--   transactions. Of other roles' sessions only a member of pg_read_all_stats sees anything
-- Locks: none
-- Atomic: one statement
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
ORDER BY age(xmin) DESC LIMIT 1)
