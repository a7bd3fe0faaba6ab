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
-- Result: JSON array of [lane with tenant, rank, virtual time, due, seq, tenant, virtual time, mean run time, unmeasured,
--   weight]
SELECT json_group_array(json_array(
    t.lane, t.rank, t.virtual_time, t.due, t.seq, t.tenant, s.virtual_time, s.mean_run_time, s.unmeasured,
    coalesce((SELECT w.units FROM tenant AS n CROSS JOIN tenant_weight AS w ON w.tenant = n.name WHERE n.id = t.tenant), 100)
)) FROM (
    SELECT lane, rank, virtual_time, due, seq, tenant, queue FROM tenant_turn
    WHERE main_lane = ?1 AND (rank, virtual_time, due, seq) > (?2, ?3, ?4, ?5)
    ORDER BY rank, virtual_time, due, seq LIMIT ?6
) AS t
CROSS JOIN tenant_share AS s ON s.queue = t.queue AND s.rank = t.rank AND s.tenant = t.tenant;

-- name: list_turn_jobs
-- List the jobs of a group after one of them.
-- Inputs: ?1 lane with tenant, ?2 rank, ?3 due and ?4 seq of that job, ?5 the maximum number of jobs
-- Result: JSON array of [due, seq]
SELECT json_group_array(json_array(due, seq)) FROM (
    SELECT due, seq FROM ready WHERE lane = ?1 AND rank = ?2 AND (due, seq) > (?3, ?4) ORDER BY due, seq LIMIT ?5
);

-- name: list_floors
-- Read the floors of a queue.
-- Inputs: ?1 queue
-- Result: JSON object: rank -> floor
SELECT json_group_object(rank, floor) FROM tenant_floor WHERE queue = ?1;

-- name: put_floors
-- Store floors.
-- Inputs: ?1 JSON array of [queue, rank, floor]
INSERT INTO tenant_floor (queue, rank, floor)
SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]')
FROM json_each(?1) AS e WHERE true
ON CONFLICT (queue, rank) DO UPDATE SET floor = excluded.floor;

-- name: insert_charges
-- Store what leased jobs were charged.
-- Inputs: ?1 JSON array of [seq, queue, rank, tenant, charge, now]
INSERT INTO lease_charge (seq, queue, rank, tenant, charge, leased_at)
SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]'),
    json_extract(e.value, '$[3]'), json_extract(e.value, '$[4]'), json_extract(e.value, '$[5]')
FROM json_each(?1) AS e;

-- name: list_charges
-- Read what leased jobs were charged, and the shares of their tenants.
-- Inputs: ?1 JSON array of seqs, ?2 session number; NULL: the tokens are not needed
-- Result: JSON array, in the order of the seqs, of [seq, fence, nonce (hexadecimal), queue, rank, tenant, charge, leased_at,
--   virtual time, mean run time, unmeasured, weight]
SELECT json_group_array(json_array(
    c.seq, coalesce(l.fence, -1), coalesce(hex(l.nonce), ''), c.queue, c.rank, c.tenant, c.charge, c.leased_at,
    s.virtual_time, s.mean_run_time, s.unmeasured,
    coalesce((SELECT w.units FROM tenant AS n CROSS JOIN tenant_weight AS w ON w.tenant = n.name WHERE n.id = c.tenant), 100)
)) FROM json_each(?1) AS e
CROSS JOIN lease_charge AS c ON c.seq = e.value
CROSS JOIN tenant_share AS s ON s.queue = c.queue AND s.rank = c.rank AND s.tenant = c.tenant
LEFT JOIN lease AS l ON l.session = ?2 AND l.seq = c.seq;

-- name: delete_charges
-- Delete what jobs were charged whose leases end.
-- Inputs: ?1 JSON array of seqs
DELETE FROM lease_charge WHERE seq IN (SELECT value FROM json_each(?1));

-- name: put_shares
-- Store shares of tenants.
-- Inputs: ?1 queue, ?2 rank, ?3 JSON array of [tenant, virtual time, mean run time, unmeasured]
INSERT INTO tenant_share (queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
SELECT ?1, ?2, json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]'),
    json_extract(e.value, '$[3]')
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
WHERE (lane, rank) IN (
    SELECT t.lane, t.rank FROM json_each(?3) AS e CROSS JOIN tenant_turn AS t
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
-- Result: queue, rank, tenant, weight in hundredths, virtual time beyond the floor, waiting and leased jobs
SELECT * FROM (
    SELECT s.queue, s.rank, n.name, coalesce((SELECT w.units FROM tenant_weight AS w WHERE w.tenant = n.name), 100),
        s.virtual_time - coalesce(
            (SELECT f.floor FROM tenant_floor AS f WHERE f.queue = s.queue AND f.rank = s.rank), 0
        ),
        (
            SELECT count(*) FROM (
                SELECT 1 FROM tenant_turn AS t CROSS JOIN ready AS r ON r.lane = t.lane AND r.rank = t.rank
                WHERE t.tenant = s.tenant AND t.rank = s.rank AND t.queue = s.queue LIMIT ?1
            )
        ) AS waiting,
        (
            SELECT count(*) FROM lease_charge AS c
            WHERE c.queue = s.queue AND c.rank = s.rank AND c.tenant = s.tenant
        ) AS running
    FROM tenant_share AS s CROSS JOIN tenant AS n ON n.id = s.tenant
    ORDER BY s.queue, s.rank, s.virtual_time, n.name
) WHERE waiting > 0 OR running > 0 LIMIT ?2;

-- name: find_turn
-- Find where a waiting job stands in the turns of its queue.
-- Inputs: ?1 seq, ?2 the maximum number of jobs before it to count
-- Result: tenant, its virtual time beyond the floor, the number of other tenants before it, the number of jobs of its group
--   before it; no row if the job does not wait for a turn
SELECT n.name, t.virtual_time - coalesce(
        (SELECT f.floor FROM tenant_floor AS f WHERE f.queue = t.queue AND f.rank = t.rank), 0
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
CROSS JOIN tenant_turn AS t ON t.lane = r.lane AND t.rank = r.rank
CROSS JOIN tenant AS n ON n.id = t.tenant
WHERE j.seq = ?1;

-- name: delete_idle_shares
-- Delete the shares of tenants that have no waiting and no leased jobs: of those that are not ahead of the floor, and of all
-- where no tenant of the queue and priority has such jobs.
DELETE FROM tenant_share WHERE (queue, rank) NOT IN (
    SELECT queue, rank FROM tenant_turn UNION SELECT queue, rank FROM lease_charge
) OR (queue, rank, tenant) NOT IN (
    SELECT queue, rank, tenant FROM tenant_turn UNION SELECT queue, rank, tenant FROM lease_charge
) AND virtual_time <= coalesce(
    (SELECT f.floor FROM tenant_floor AS f WHERE f.queue = tenant_share.queue AND f.rank = tenant_share.rank), 0
);

-- name: delete_idle_floors
-- Delete the floors of queues and priorities without shares.
DELETE FROM tenant_floor WHERE (queue, rank) NOT IN (SELECT queue, rank FROM tenant_share);
