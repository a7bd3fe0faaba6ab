-- Limits: what workers declared, what operators changed, what is in force, and the use of each key.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT. `limit_rule` holds what is
-- declared, and what is in force: that with the changes of whole limits. A change of one key stays in `limit_change` and is
-- read with the rules. An exchange reads and writes the keys of all its jobs in one statement for each limit: JSON objects
-- hold a value for each key.

-- name: list_limit_rules
-- List the limits in force.
-- Inputs: ?1 job name; NULL: all
-- Result: JSON array of [job name, limit name, concurrency, rate, interval, burst, cost], ordered by both names
SELECT json_group_array(json_array(job_name, limit_name, concurrency, rate, interval, burst, cost)) FROM (
    SELECT * FROM limit_rule WHERE ?1 IS NULL OR job_name = ?1 ORDER BY job_name, limit_name
);

-- name: list_keyed_rules
-- List the limits in force for which jobs may be parked.
-- Result: as for `list_limit_rules`
SELECT json_group_array(json_array(job_name, limit_name, concurrency, rate, interval, burst, cost)) FROM (
    SELECT * FROM limit_rule WHERE closes_lane = 0 ORDER BY job_name, limit_name
);

-- name: list_waiting_lanes
-- List the lanes of a job name, or of a queue, that have jobs in `ready`.
-- Inputs: ?1 job name, or NULL; ?2 queue, or NULL
-- Result: number, queue, job name
SELECT id, queue, name FROM lane
WHERE (name = ?1 OR queue = ?2) AND (
    EXISTS (SELECT 1 FROM ready WHERE lane = id) OR EXISTS (SELECT 1 FROM tenant_turn WHERE main_lane = id)
);

-- name: list_lane_limits
-- List the limits of job names and of queues with their uses.
-- Result: JSON array of [job name, limit name, concurrency, rate, interval, burst, cost, in_use, spent_until]
SELECT json_group_array(json_array(
    r.job_name, r.limit_name, r.concurrency, r.rate, r.interval, r.burst, r.cost, u.in_use, u.spent_until
))
FROM limit_rule AS r LEFT JOIN limit_use AS u ON u.limit_name = r.limit_name AND u.key = '' WHERE r.closes_lane = 1;

-- name: insert_limit_rule
-- Add a limit of a job name.
-- Inputs: ?1 job name, ?2 limit name, ?3 what is declared (JSON), NULL: nothing, ?4 concurrency, ?5 rate, ?6 interval,
--   ?7 burst and ?8 cost in force, ?9 whether it closes lanes
INSERT INTO limit_rule (job_name, limit_name, declared, concurrency, rate, interval, burst, cost, closes_lane)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9);

-- name: delete_limit_rules
-- Delete the limits of a job name.
-- Inputs: ?1 job name
DELETE FROM limit_rule WHERE job_name = ?1;

-- name: list_declared_limits
-- Read what the newest session of a job name declared.
-- Inputs: ?1 job name
-- Result: limit name, rule (JSON)
SELECT limit_name, declared FROM limit_rule WHERE job_name = ?1 AND declared IS NOT NULL;

-- name: list_job_names_of_limit
-- List the job names that have a limit.
-- Inputs: ?1 limit name
-- Result: job name
SELECT job_name FROM limit_rule WHERE limit_name = ?1 ORDER BY job_name;

-- name: list_known_names
-- List the job names that have limits, and those of the sessions that have not ended.
-- Result: job name
SELECT job_name FROM limit_rule
UNION SELECT n.value FROM session AS s, json_each(s.description, '$.names') AS n WHERE s.ended_at IS NULL;

-- name: count_running_jobs
-- Count the leased jobs again in a limit that closes lanes: a job name has it now, or has it no more.
-- Inputs: ?1 limit name
INSERT INTO limit_use (limit_name, key, in_use, spent_until) VALUES (
    ?1, '', (
        SELECT count(*) FROM lease WHERE lane & 1048575 IN (
            SELECT lane.id FROM limit_rule AS r CROSS JOIN lane ON lane.name = r.job_name
            WHERE r.limit_name = ?1 AND ?1 IN ('job:' || lane.name, 'queue:' || lane.queue)
        )
    ), 0
)
ON CONFLICT (limit_name, key) DO UPDATE SET in_use = excluded.in_use;

-- name: forget_units
-- Forget the units that jobs have taken from a rate that is gone.
-- Inputs: ?1 limit name
UPDATE limit_use SET spent_until = 0 WHERE limit_name = ?1;

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

-- name: list_job_options
-- Read the options of jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON array of [seq, options], without jobs that have none
SELECT '[' || coalesce(group_concat('[' || j.seq || ',' || j.options || ']'), '') || ']'
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value WHERE j.options IS NOT NULL;

-- name: list_uses_of_keys
-- Read the use of keys of one limit.
-- Inputs: ?1 limit name, ?2 JSON array of keys
-- Result: JSON array of [in_use, spent_until, opens_at, whether jobs are parked], one for each key: 0, 0, NULL if unused
SELECT json_group_array(json_array(
    coalesce(k.in_use, 0), coalesce(k.spent_until, 0), k.opens_at,
    EXISTS (SELECT 1 FROM parked AS p WHERE p.limit_name = ?1 AND p.key = e.value)
))
FROM json_each(?2) AS e LEFT JOIN limit_use AS k ON k.limit_name = ?1 AND k.key = e.value;

-- name: put_limit_uses
-- Store the use of keys of one limit.
-- Inputs: ?1 limit name, ?2 JSON object: key -> [in_use, spent_until, opens_at]
INSERT INTO limit_use (limit_name, key, in_use, spent_until, opens_at)
SELECT ?1, e.key, json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]')
FROM json_each(?2) AS e WHERE true
ON CONFLICT (limit_name, key) DO UPDATE
SET in_use = excluded.in_use, spent_until = excluded.spent_until, opens_at = excluded.opens_at;

-- name: carry_over_keys
-- Let the units that were taken from the rate of a limit delay its keys by at most a full burst of its new rate,
-- except keys that have a rate of their own.
-- Inputs: ?1 limit name, ?2 now + a full burst of the new rate, ?3 now + a full burst of the old one
UPDATE limit_use SET spent_until = ?2 WHERE limit_name = ?1 AND spent_until > ?2 AND spent_until <= ?3
    AND NOT EXISTS (
        SELECT 1 FROM limit_change AS c WHERE c.name = limit_use.limit_name AND c.for_key AND c.key = limit_use.key
            AND json_extract(c.body, '$.rate') IS NOT NULL
    );

-- name: get_limits_used_at
-- Return when the latest exchange considered limits, exact to a second.
-- Result: the time; 0 if none did
SELECT coalesce((SELECT value FROM meta WHERE name = 'limits_used_at'), 0);

-- name: put_limits_used_at
-- Store when an exchange considered limits.
-- Inputs: ?1 now
INSERT INTO meta (name, value) VALUES ('limits_used_at', ?1) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: let_uses_follow_clock
-- Let the rates follow a clock that was set back (`follow_clock` in core/rate_limits.py), and consider the parked jobs of
-- their keys again.
-- Inputs: ?1 now, ?2 the time before
UPDATE limit_use SET opens_at = min(opens_at, ?1), spent_until = min(spent_until, ?1 + max(spent_until - ?2, coalesce((
    SELECT max(max(l.burst, l.cost) * l.interval) FROM limit_rule AS l WHERE l.limit_name = limit_use.limit_name
), 0)));

-- name: prune_limit_uses
-- Delete the keys that are not in use any more.
-- Inputs: ?1 now
DELETE FROM limit_use WHERE in_use = 0 AND opens_at IS NULL AND spent_until < ?1 AND NOT EXISTS (
    SELECT 1 FROM parked AS p WHERE p.limit_name = limit_use.limit_name AND p.key = limit_use.key
);

-- name: get_key_use
-- Read the use of a key, if it is in use or jobs wait for it.
-- Inputs: ?1 limit name, ?2 key
-- Result: limit name, key, in_use, number of parked jobs, opens_at; or no row
SELECT * FROM (
    SELECT k.limit_name, k.key, k.in_use, (
        SELECT count(*) FROM parked AS p WHERE p.limit_name = k.limit_name AND p.key = k.key
    ) AS waiting, k.opens_at
    FROM limit_use AS k WHERE k.limit_name = ?1 AND k.key = ?2
) WHERE in_use > 0 OR waiting > 0;

-- name: list_fullest_keys
-- List the fullest keys of each limit, with the sums of all its keys.
-- Inputs: ?1 limit name; NULL: all, ?2 the maximum number of keys of each limit
-- Result: limit name, key, in_use, number of parked jobs, opens_at; keys, in_use and parked jobs of the limit
SELECT limit_name, key, in_use, waiting, opens_at, keys, all_in_use, all_waiting FROM (
    SELECT *, row_number() OVER (PARTITION BY limit_name ORDER BY in_use + waiting DESC, key) AS place,
        count(*) OVER named AS keys, sum(in_use) OVER named AS all_in_use, sum(waiting) OVER named AS all_waiting
    FROM (
        SELECT u.limit_name, u.key, coalesce(k.in_use, 0) AS in_use, k.opens_at, (
            SELECT count(*) FROM parked AS p WHERE p.limit_name = u.limit_name AND p.key = u.key
        ) AS waiting
        FROM (
            SELECT limit_name, key FROM limit_use WHERE ?1 IS NULL OR limit_name = ?1
            UNION SELECT limit_name, key FROM parked WHERE ?1 IS NULL OR limit_name = ?1
        ) AS u LEFT JOIN limit_use AS k ON k.limit_name = u.limit_name AND k.key = u.key
    ) WHERE in_use > 0 OR waiting > 0 WINDOW named AS (PARTITION BY limit_name)
) WHERE place <= ?2 ORDER BY limit_name, place;

-- name: list_limit_holders
-- List the jobs that have counted longest against the maximum of each job name.
-- Inputs: ?1 limit name; NULL: all, ?2 the maximum number of jobs of each limit
-- Result: limit name, job id, session id, host, leased_at; longest first
SELECT limit_name, job, session, coalesce(host, ''), leased_at FROM (
    SELECT
        r.limit_name, j.id AS job, s.id AS session, json_extract(s.description, '$.host') AS host, l.leased_at,
        row_number() OVER (PARTITION BY r.limit_name ORDER BY l.leased_at, j.id) AS position
    FROM lease AS l
    CROSS JOIN lane ON lane.id = l.lane & 1048575
    CROSS JOIN limit_rule AS r ON r.limit_name = 'job:' || lane.name AND r.job_name = lane.name AND r.concurrency IS NOT NULL
    CROSS JOIN job AS j ON j.seq = l.seq
    CROSS JOIN session AS s ON s.number = l.session
    WHERE ?1 IS NULL OR r.limit_name = ?1
) WHERE position <= ?2 ORDER BY limit_name, position;
