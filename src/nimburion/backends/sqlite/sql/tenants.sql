-- Turns of tenants: read who is next, charge leases, correct and forget.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. Triggers of `ready` keep `tenant_turn`: every statement that adds or
-- removes a waiting job changes it too. A lane with a tenant is the number of the lane plus 1048576 times that of the tenant.

-- name: has_turns
-- Test whether any job waits for the turn of its tenant.
-- Result: 0 or 1
SELECT EXISTS (SELECT 1 FROM tenant_turn);

-- name: list_turns
-- List the groups of a lane by turn, after a place in that order.
-- Inputs: ?1 lane, ?2 rank, ?3 virtual time, ?4 due and ?5 seq of that place, ?6 the maximum number of groups
-- Result: JSON array of [rank, virtual time, due, seq, tenant]
SELECT json_group_array(json_array(rank, virtual_time, due, seq, tenant)) FROM (
    SELECT rank, virtual_time, due, seq, tenant FROM tenant_turn
    WHERE main_lane = ?1 AND (rank, virtual_time, due, seq) > (?2, ?3, ?4, ?5)
    ORDER BY rank, virtual_time, due, seq LIMIT ?6
);

-- name: list_shares
-- Read the shares of tenants of one queue and priority.
-- Inputs: ?1 queue, ?2 rank, ?3 JSON array of tenants
-- Result: JSON array of [tenant, virtual time (-1: the tenant has no share), mean run time, unmeasured, weight]
SELECT json_group_array(json_array(
    e.value, coalesce(s.virtual_time, -1), coalesce(s.mean_run_time, 0), coalesce(s.unmeasured, 0),
    CASE WHEN EXISTS (SELECT 1 FROM tenant_weight) THEN coalesce((
        SELECT w.units FROM tenant AS n CROSS JOIN tenant_weight AS w ON w.tenant = n.name WHERE n.id = e.value
    ), 100) ELSE 100 END
)) FROM json_each(?3) AS e LEFT JOIN tenant_share AS s ON s.queue = ?1 AND s.rank = ?2 AND s.tenant = e.value;

-- name: list_turn_jobs
-- List the jobs of a group after one of them.
-- Inputs: ?1 lane with tenant, ?2 rank, ?3 due and ?4 seq of that job, ?5 the maximum number of jobs
-- Result: JSON array of [due, seq]
SELECT json_group_array(json_array(due, seq)) FROM (
    SELECT due, seq FROM ready WHERE lane = ?1 AND rank = ?2 AND (due, seq) > (?3, ?4) ORDER BY due, seq LIMIT ?5
);

-- name: list_min_virtual_times
-- Read the minimum virtual times of a queue.
-- Inputs: ?1 queue
-- Result: JSON object: rank -> minimum virtual time
SELECT json_group_object(rank, min_virtual_time) FROM share_class WHERE queue = ?1;

-- name: put_share_classes
-- Store minimum virtual times.
-- Inputs: ?1 JSON array of [queue, rank, minimum virtual time]
INSERT INTO share_class (queue, rank, min_virtual_time)
SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]')
FROM json_each(?1) AS e WHERE true
ON CONFLICT (queue, rank) DO UPDATE SET min_virtual_time = excluded.min_virtual_time;

-- name: insert_charged_leases
-- Lease jobs to a session, some of which are charged to their tenants.
-- Inputs: ?1 session number, ?2 exchange number, ?3 nonce, ?4 now, ?5 JSON object: seq -> charge or null, in the order of the reply
INSERT INTO lease (session, seq, lane, exchange_number, reply_position, fence, nonce, leased_at, charge, rank)
SELECT ?1, j.seq, j.lane, ?2, s.id, j.fence + 1, ?3, ?4, s.value, iif(s.value IS NULL, NULL, -j.priority)
FROM json_each(?5) AS s CROSS JOIN job AS j ON j.seq = CAST(s.key AS INTEGER);

-- name: list_charges
-- Read what leased jobs were charged.
-- Inputs: ?1 session number, ?2 JSON array of seqs
-- Result: JSON array, in the order of the seqs, of [seq, fence, nonce (hexadecimal), lane, rank, charge, leased_at]
SELECT json_group_array(json_array(l.seq, l.fence, hex(l.nonce), l.lane, l.rank, l.charge, l.leased_at))
FROM json_each(?2) AS e CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = e.value WHERE l.charge IS NOT NULL;

-- name: put_shares
-- Store shares of tenants. Reading the numbers from JSON would take most of the time of this statement.
-- Inputs: ?1 queue, ?2 rank, ?3 JSON array of tenants, ?4 virtual time, mean run time and unmeasured of each as 20 characters
INSERT INTO tenant_share (queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
SELECT ?1, ?2, e.value, CAST(substr(?4, 60 * e.key + 1, 20) AS INTEGER), CAST(substr(?4, 60 * e.key + 21, 20) AS INTEGER),
    CAST(substr(?4, 60 * e.key + 41, 20) AS INTEGER)
FROM json_each(?3) AS e WHERE true
ON CONFLICT (queue, rank, tenant) DO UPDATE SET virtual_time = excluded.virtual_time,
    mean_run_time = excluded.mean_run_time, unmeasured = excluded.unmeasured;

-- name: rank_turns
-- Give the groups of tenants their places after their virtual times changed.
-- Inputs: ?1 queue, ?2 rank, ?3 JSON array of tenants
UPDATE tenant_turn SET virtual_time = (
    SELECT s.virtual_time FROM tenant_share AS s
    WHERE s.queue = ?1 AND s.rank = ?2 AND s.tenant = tenant_turn.tenant
)
WHERE (tenant, rank, main_lane) IN (
    SELECT t.tenant, t.rank, t.main_lane FROM json_each(?3) AS e CROSS JOIN tenant_turn AS t
    ON t.tenant = e.value AND t.rank = ?2 AND t.queue = ?1
);

-- name: move_turns
-- Give the groups of tenants their places before jobs are removed from `ready`: `ready_removed` then finds nothing to change.
-- It deletes a group without other jobs; such a row would get NULL here, which OR IGNORE passes over.
-- Inputs: as for `rank_turns`, ?4 JSON array of the seqs that are removed
UPDATE OR IGNORE tenant_turn SET virtual_time = (
    SELECT s.virtual_time FROM tenant_share AS s
    WHERE s.queue = ?1 AND s.rank = ?2 AND s.tenant = tenant_turn.tenant
), (due, seq) = (
    SELECT r.due, r.seq FROM ready AS r
    WHERE r.lane = tenant_turn.main_lane + (tenant_turn.tenant << 20) AND r.rank = ?2
        AND r.seq NOT IN (SELECT value FROM json_each(?4))
    ORDER BY r.due, r.seq LIMIT 1
)
WHERE (tenant, rank, main_lane) IN (
    SELECT t.tenant, t.rank, t.main_lane FROM json_each(?3) AS e CROSS JOIN tenant_turn AS t
    ON t.tenant = e.value AND t.rank = ?2 AND t.queue = ?1
);

-- name: set_tenant_weight
-- Set the weight of a tenant.
-- Inputs: ?1 tenant, ?2 weight in hundredths
INSERT INTO tenant_weight (tenant, units) VALUES (?1, ?2)
ON CONFLICT (tenant) DO UPDATE SET units = excluded.units;

-- name: delete_tenant_weight
-- Give a tenant the weight 1.
-- Inputs: ?1 tenant
DELETE FROM tenant_weight WHERE tenant = ?1;

-- name: list_tenant_weights
-- List the weights that were set.
-- Inputs: ?1 the maximum number of tenants
-- Result: tenant, weight in hundredths
SELECT tenant, units FROM tenant_weight ORDER BY tenant LIMIT ?1;

-- name: list_tenants
-- List the tenants with waiting or leased jobs.
-- Inputs: ?1 the most waiting jobs that are counted for each, ?2 the maximum number of tenants
-- Result: queue, rank, tenant, weight in hundredths, virtual time beyond the minimum, waiting and leased jobs
WITH charged AS MATERIALIZED (
    SELECT n.queue, l.rank, l.lane >> 20 AS tenant, count(*) AS jobs
    FROM lease AS l CROSS JOIN lane AS n ON n.id = l.lane & 1048575 WHERE l.charge IS NOT NULL GROUP BY 1, 2, 3
)
SELECT * FROM (
    SELECT s.queue, s.rank, n.name, coalesce((SELECT w.units FROM tenant_weight AS w WHERE w.tenant = n.name), 100),
        s.virtual_time - coalesce(
            (SELECT c.min_virtual_time FROM share_class AS c WHERE c.queue = s.queue AND c.rank = s.rank), 0
        ),
        (
            SELECT count(*) FROM (
                SELECT 1 FROM tenant_turn AS t CROSS JOIN ready AS r
                ON r.lane = t.main_lane + (t.tenant << 20) AND r.rank = t.rank
                WHERE t.tenant = s.tenant AND t.rank = s.rank AND t.queue = s.queue LIMIT ?1
            )
        ) AS waiting,
        coalesce(c.jobs, 0) AS running
    FROM tenant_share AS s CROSS JOIN tenant AS n ON n.id = s.tenant
    LEFT JOIN charged AS c ON c.queue = s.queue AND c.rank = s.rank AND c.tenant = s.tenant
    ORDER BY s.queue, s.rank, s.virtual_time, n.name
) WHERE waiting > 0 OR running > 0 LIMIT ?2;

-- name: find_turn
-- Find where a waiting job stands in the turns of its queue.
-- Inputs: ?1 seq, ?2 the maximum number of jobs before it to count
-- Result: tenant, its virtual time beyond the minimum, the number of other tenants before it, the number of jobs of its group
--   before it; no row if the job does not wait for a turn
SELECT n.name, t.virtual_time - coalesce(
        (SELECT c.min_virtual_time FROM share_class AS c WHERE c.queue = t.queue AND c.rank = t.rank), 0
    ),
    (
        SELECT count(DISTINCT o.tenant) FROM tenant_turn AS o
        WHERE o.queue = t.queue AND o.rank = t.rank AND o.virtual_time < t.virtual_time
    ),
    (
        SELECT count(*) FROM (
            SELECT 1 FROM ready AS b WHERE b.lane = r.lane AND b.rank = r.rank AND (b.due, b.seq) < (r.due, r.seq) LIMIT ?2
        )
    )
FROM job AS j
CROSS JOIN ready AS r ON (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq)
CROSS JOIN tenant_turn AS t ON t.tenant = r.lane >> 20 AND t.rank = r.rank AND t.main_lane = r.lane & 1048575
CROSS JOIN tenant AS n ON n.id = t.tenant
WHERE j.seq = ?1;

-- name: delete_idle_shares
-- Delete shares of tenants that have no waiting and no leased jobs: of those that are not ahead of the minimum, and of all
-- where no tenant of the queue and priority has such jobs.
-- Inputs: ?1 the maximum number of shares
WITH busy (queue, rank, tenant) AS MATERIALIZED (
    SELECT queue, rank, tenant FROM tenant_turn UNION
    SELECT n.queue, l.rank, l.lane >> 20 FROM lease AS l CROSS JOIN lane AS n ON n.id = l.lane & 1048575
    WHERE l.charge IS NOT NULL
)
DELETE FROM tenant_share WHERE (queue, rank, tenant) IN (
    SELECT s.queue, s.rank, s.tenant FROM tenant_share AS s
    WHERE (s.queue, s.rank) NOT IN (SELECT queue, rank FROM busy)
        OR (s.queue, s.rank, s.tenant) NOT IN (SELECT queue, rank, tenant FROM busy)
        AND s.virtual_time <= coalesce(
            (SELECT c.min_virtual_time FROM share_class AS c WHERE c.queue = s.queue AND c.rank = s.rank), 0
        )
    LIMIT ?1
);

-- name: delete_idle_share_classes
-- Delete the minimum virtual times of queues and priorities without shares.
DELETE FROM share_class WHERE (queue, rank) NOT IN (SELECT queue, rank FROM tenant_share);
