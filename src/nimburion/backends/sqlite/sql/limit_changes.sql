-- Limits that operators changed at run time, and what workers declared.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT. `concurrency_limit`,
-- `rate_limit` and `keyed_limit` hold what is in force: what is declared, with the changes. A change of one key stays here
-- and is read with the limits by key.

-- name: put_declared_limits
-- Store what the newest session of a job name declared.
-- Inputs: ?1 job name, ?2 limits (JSON)
INSERT INTO declared_limit (name, body) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = excluded.body
WHERE body <> excluded.body;

-- name: delete_declared_limits
-- Delete what was declared for a job name: the newest session declared no limit.
-- Inputs: ?1 job name
DELETE FROM declared_limit WHERE name = ?1;

-- name: get_declared_limits
-- Read what the newest session of a job name declared.
-- Inputs: ?1 job name
-- Result: limits (JSON), or no row
SELECT body FROM declared_limit WHERE name = ?1;

-- name: list_job_names_of_limit
-- List the job names for which a limit by key is declared.
-- Inputs: ?1 limit name
-- Result: job name
SELECT job_name FROM keyed_limit WHERE limit_name = ?1 ORDER BY job_name;

-- name: list_known_names
-- List the job names that have limits, and those of the sessions that have not ended.
-- Result: job name
SELECT name FROM declared_limit UNION SELECT job_name FROM keyed_limit
UNION SELECT n.value FROM session AS s, json_each(s.description, '$.names') AS n WHERE s.ended_at IS NULL;

-- name: put_limit_change
-- Store the change of a limit, or of one of its keys.
-- Inputs: ?1 limit name, ?2 whether it is for one key, ?3 that key, ?4 change (JSON)
INSERT INTO limit_change (name, for_key, key, body) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (name, for_key, key) DO UPDATE SET body = excluded.body;

-- name: delete_limit_change
-- Delete the change of a limit, or of one of its keys.
-- Inputs: ?1 limit name, ?2 whether it is for one key, ?3 that key
-- Result: the number of rows
DELETE FROM limit_change WHERE name = ?1 AND for_key = ?2 AND key = ?3;

-- name: list_limit_changes
-- List the changes of limits.
-- Inputs: ?1 0: only changes of whole limits, 1: only those of single keys; NULL: all
-- Result: change (JSON), ordered by name, whole limits first, then by key
SELECT body FROM limit_change WHERE ?1 IS NULL OR for_key = ?1 ORDER BY name, for_key, key;

-- name: get_limit_change
-- Read the change of a limit, or of one of its keys.
-- Inputs: ?1 limit name, ?2 whether it is for one key, ?3 that key
-- Result: change (JSON), or no row
SELECT body FROM limit_change WHERE name = ?1 AND for_key = ?2 AND key = ?3;

-- name: carry_over_keys
-- Let the units that were taken from the rate of a limit delay its keys by at most a full burst of its new rate,
-- except keys that have a rate of their own.
-- Inputs: ?1 limit name, ?2 now + a full burst of the new rate, ?3 now + a full burst of the old one
UPDATE limit_key SET spent_until = ?2 WHERE limit_name = ?1 AND spent_until > ?2 AND spent_until <= ?3
    AND NOT EXISTS (
        SELECT 1 FROM limit_change AS c WHERE c.name = limit_key.limit_name AND c.for_key AND c.key = limit_key.key
            AND json_extract(c.body, '$.rate') IS NOT NULL
    );

-- name: get_limits_used_at
-- Return when the latest exchange considered rate limits or limits by key, exact to a second.
-- Result: the time; 0 if none did
SELECT coalesce((SELECT value FROM meta WHERE name = 'limits_used_at'), 0);

-- name: put_limits_used_at
-- Store when an exchange considered rate limits or limits by key.
-- Inputs: ?1 now
INSERT INTO meta (name, value) VALUES ('limits_used_at', ?1) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: let_rates_follow_clock
-- Let the rate limits of names follow a clock that was set back (`follow_clock` in core/rate_limits.py).
-- Inputs: ?1 now, ?2 the time before
UPDATE rate_limit SET spent_until = min(spent_until, ?1 + max(max(burst, cost) * interval, spent_until - ?2));

-- name: let_keys_follow_clock
-- Let the rates of keys follow a clock that was set back, and consider their parked jobs again.
-- Inputs: ?1 now, ?2 the time before
UPDATE limit_key SET opens_at = min(opens_at, ?1), spent_until = min(spent_until, ?1 + max(spent_until - ?2, coalesce((
    SELECT max(max(l.burst, l.cost) * l.interval) FROM keyed_limit AS l WHERE l.limit_name = limit_key.limit_name
), 0)));
