-- Parked jobs: record for which keys leased jobs count, park jobs whose key has no room, and return them to their lanes.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. A job is in `ready` or in `parked`, never in both. `parked.lane` is without
-- the tenant: among the jobs of a key there are no turns. A lease has no row in `lease_key` for the limits of its job name
-- and its queue: its lane says that it counts there.

-- name: insert_lease_keys
-- Record for which keys of a limit leased jobs count.
-- Inputs: ?1 limit name, ?2 JSON object: seq -> key
INSERT INTO lease_key (seq, limit_name, key)
SELECT CAST(e.key AS INTEGER), ?1, e.value FROM json_each(?2) AS e;

-- name: list_lease_keys
-- List the keys for which a leased job counts.
-- Inputs: ?1 seq
-- Result: limit name, key
SELECT limit_name, key FROM lease_key WHERE seq = ?1 ORDER BY limit_name;

-- name: count_lease_keys
-- Count the jobs whose leases ended, by key.
-- Inputs: ?1 JSON array of seqs
-- Result: limit name, JSON object: key -> number of jobs
SELECT limit_name, json_group_object(key, jobs) FROM (
    SELECT k.limit_name, k.key, count(*) AS jobs FROM json_each(?1) AS s CROSS JOIN lease_key AS k ON k.seq = s.value
    GROUP BY k.limit_name, k.key
) GROUP BY limit_name;

-- name: delete_lease_keys
-- Delete the keys for which jobs counted whose leases ended.
-- Inputs: ?1 JSON array of seqs
DELETE FROM lease_key WHERE seq IN (SELECT value FROM json_each(?1));

-- name: release_keys
-- Count jobs less for keys of a limit.
-- Inputs: ?1 limit name, ?2 JSON object: key -> number of jobs
INSERT INTO limit_use (limit_name, key, in_use, spent_until)
SELECT ?1, e.key, e.value, 0 FROM json_each(?2) AS e WHERE true
ON CONFLICT (limit_name, key) DO UPDATE SET in_use = in_use - excluded.in_use;

-- name: find_parked_keys
-- Find the keys of a limit for which jobs are parked.
-- Inputs: ?1 limit name, ?2 JSON object whose names are keys
-- Result: key
SELECT e.key FROM json_each(?2) AS e
WHERE EXISTS (SELECT 1 FROM parked AS p WHERE p.limit_name = ?1 AND p.key = e.key);

-- name: list_parked_lanes
-- List the lanes of the jobs that are parked for a key. It reads the first job of each lane only.
-- Inputs: ?1 limit name, ?2 key
-- Result: lane
WITH RECURSIVE found (lane) AS (
    SELECT min(lane) FROM parked WHERE limit_name = ?1 AND key = ?2
    UNION ALL
    SELECT (SELECT min(p.lane) FROM parked AS p WHERE p.limit_name = ?1 AND p.key = ?2 AND p.lane > found.lane)
    FROM found WHERE found.lane IS NOT NULL
)
SELECT lane FROM found WHERE lane IS NOT NULL;

-- name: copy_to_parked
-- Copy jobs of `ready` to `parked`.
-- Inputs: ?1 limit name, ?2 JSON object: seq -> key
INSERT INTO parked (limit_name, key, lane, rank, due, seq, has_failed)
SELECT ?1, e.value, r.lane & 1048575, r.rank, r.due, r.seq, r.has_failed FROM json_each(?2) AS e
CROSS JOIN job AS j ON j.seq = CAST(e.key AS INTEGER)
CROSS JOIN ready AS r ON (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq);

-- name: move_parked
-- Park jobs for a key of a limit that are parked for another one.
-- Inputs: ?1 limit name, ?2 JSON object: seq -> key
INSERT OR REPLACE INTO parked (limit_name, key, lane, rank, due, seq, has_failed)
SELECT ?1, e.value, p.lane, p.rank, p.due, p.seq, p.has_failed FROM json_each(?2) AS e
CROSS JOIN parked AS p ON p.seq = CAST(e.key AS INTEGER);

-- name: list_parked
-- List the jobs of a lane that are parked for a key, after one of them.
-- Inputs: ?1 limit name, ?2 key, ?3 lane, ?4 rank, ?5 due and ?6 seq of that job, ?7 the maximum number of jobs
-- Result: JSON array of [rank, due, seq, tenant; 0: it waits for no turn]
SELECT json_group_array(json_array(rank, due, seq, tenant)) FROM (
    SELECT p.rank, p.due, p.seq, j.lane >> 20 AS tenant FROM parked AS p CROSS JOIN job AS j ON j.seq = p.seq
    WHERE p.limit_name = ?1 AND p.key = ?2 AND p.lane = ?3 AND (p.rank, p.due, p.seq) > (?4, ?5, ?6)
    ORDER BY p.rank, p.due, p.seq LIMIT ?7
);

-- name: copy_from_parked
-- Copy the first jobs of a lane that are parked for a key to `ready`.
-- Inputs: ?1 limit name, ?2 key, ?3 lane, ?4 the maximum number of jobs
-- Result: the number of rows
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT j.lane, p.rank, p.due, p.seq, p.has_failed FROM parked AS p CROSS JOIN job AS j ON j.seq = p.seq
WHERE p.limit_name = ?1 AND p.key = ?2 AND p.lane = ?3 ORDER BY p.rank, p.due, p.seq LIMIT ?4;

-- name: delete_first_parked
-- Delete the jobs that were copied to `ready` from `parked`.
-- Inputs: as for `copy_from_parked`
DELETE FROM parked WHERE (limit_name, key, lane, rank, due, seq) IN (
    SELECT limit_name, key, lane, rank, due, seq FROM parked
    WHERE limit_name = ?1 AND key = ?2 AND lane = ?3 ORDER BY rank, due, seq LIMIT ?4
);

-- name: mark_changed_limit
-- Let all jobs of a name that are parked for a limit return: the name does not have the limit any more.
-- Inputs: ?1 job name, ?2 limit name
INSERT OR REPLACE INTO changed_limit (job_name, limit_name) VALUES (?1, ?2);

-- name: let_first_return
-- Let the first jobs of each key and lane of a name that are parked for a limit return.
-- Inputs: ?1 job name, ?2 limit name, ?3 the maximum number of jobs of each key and lane
INSERT INTO changed_key (limit_name, key, lane, number)
SELECT DISTINCT p.limit_name, p.key, p.lane, ?3 FROM parked AS p CROSS JOIN lane AS l ON l.id = p.lane
WHERE p.limit_name = ?2 AND l.name = ?1
ON CONFLICT (limit_name, key, lane) DO UPDATE SET number = max(number, excluded.number);

-- name: get_changed_limit
-- Return a limit that changed, and the parked job up to which the jobs of the name were considered again.
-- Result: job name, limit name, key, lane, rank, due, seq; no row if none changed
SELECT job_name, limit_name, key, lane, rank, due, seq FROM changed_limit LIMIT 1;

-- name: list_parked_further
-- List the jobs that are parked for a limit, after one of them.
-- Inputs: ?1 limit name, ?2 key, ?3 lane, ?4 rank, ?5 due and ?6 seq of that job, ?7 the maximum number of jobs
-- Result: key, lane, rank, due, seq
SELECT key, lane, rank, due, seq FROM parked
WHERE limit_name = ?1 AND (key, lane, rank, due, seq) > (?2, ?3, ?4, ?5, ?6)
ORDER BY key, lane, rank, due, seq LIMIT ?7;

-- name: copy_seqs_from_parked
-- Copy parked jobs to `ready`.
-- Inputs: ?1 JSON array of seqs
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT j.lane, p.rank, p.due, p.seq, p.has_failed FROM json_each(?1) AS s CROSS JOIN parked AS p ON p.seq = s.value
CROSS JOIN job AS j ON j.seq = p.seq;

-- name: delete_seqs_from_parked
-- Delete parked jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM parked WHERE seq IN (SELECT value FROM json_each(?1));

-- name: put_changed_limit
-- Store the parked job up to which the jobs of a name were considered again.
-- Inputs: ?1 job name, ?2 limit name, ?3 key, ?4 lane, ?5 rank, ?6 due, ?7 seq
UPDATE changed_limit SET key = ?3, lane = ?4, rank = ?5, due = ?6, seq = ?7 WHERE job_name = ?1 AND limit_name = ?2;

-- name: delete_changed_limit
-- Forget that a limit changed: all parked jobs of the name were considered again.
-- Inputs: ?1 job name, ?2 limit name
DELETE FROM changed_limit WHERE job_name = ?1 AND limit_name = ?2;

-- name: list_changing_names
-- List the job names whose limits changed and whose parked jobs were not all considered again.
-- Result: job name
SELECT DISTINCT job_name FROM changed_limit;

-- name: put_changed_keys
-- Let the first jobs of each lane that are parked for a key return.
-- Inputs: ?1 limit name, ?2 key, ?3 JSON array of lanes, ?4 the maximum number of jobs of each lane
INSERT OR REPLACE INTO changed_key (limit_name, key, lane, number) SELECT ?1, ?2, value, ?4 FROM json_each(?3);

-- name: list_changed_keys
-- List the keys and lanes for which parked jobs still return.
-- Result: limit name, key, lane, the maximum number of jobs
SELECT limit_name, key, lane, number FROM changed_key;

-- name: reduce_changed_key
-- Count jobs that returned.
-- Inputs: ?1 limit name, ?2 key, ?3 lane, ?4 the number of jobs
UPDATE changed_key SET number = number - ?4 WHERE limit_name = ?1 AND key = ?2 AND lane = ?3;

-- name: delete_changed_key
-- Forget that a key changed: its parked jobs of a lane returned.
-- Inputs: ?1 limit name, ?2 key, ?3 lane
DELETE FROM changed_key WHERE limit_name = ?1 AND key = ?2 AND lane = ?3;

-- name: delete_parked
-- Delete a job from `parked`.
-- Inputs: ?1 seq
-- Result: the number of rows
DELETE FROM parked WHERE seq = ?1;

-- name: list_open_keys
-- List the keys whose rates allow a parked job now.
-- Inputs: ?1 now
-- Result: limit name, key
SELECT limit_name, key FROM limit_use WHERE opens_at <= ?1;

-- name: clear_openings
-- Forget the times at which rates allowed parked jobs.
-- Inputs: ?1 now
UPDATE limit_use SET opens_at = NULL WHERE opens_at <= ?1;

-- name: get_next_key_opening
-- Return when the rate of a key first allows a parked job; now, while parked jobs must be considered again.
-- Inputs: ?1 now
-- Result: the time, or NULL
SELECT CASE WHEN EXISTS (SELECT 1 FROM changed_limit) OR EXISTS (SELECT 1 FROM changed_key) THEN ?1
    ELSE (
        SELECT opens_at FROM limit_use AS k WHERE opens_at IS NOT NULL AND EXISTS (
            SELECT 1 FROM parked AS p WHERE p.limit_name = k.limit_name AND p.key = k.key
        ) ORDER BY opens_at LIMIT 1
    ) END;

-- name: find_parked
-- Find for which limit a job is parked.
-- Inputs: ?1 seq
-- Result: limit name, or no row
SELECT limit_name FROM parked WHERE seq = ?1;
