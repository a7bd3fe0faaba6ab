-- Numbers of lanes and tenants: free those that nothing uses any more.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, so no job comes to a lane while it is deleted. Other processes clear their caches, because the transaction
-- changes the count that `get_numbering` reads.

-- name: has_many_later_jobs
-- Test whether there are more scheduled or more parked jobs than this.
-- Inputs: ?1 the number
SELECT EXISTS (SELECT 1 FROM scheduled LIMIT 1 OFFSET ?1) OR EXISTS (SELECT 1 FROM parked LIMIT 1 OFFSET ?1);

-- name: list_next_lanes
-- List lanes after one of them.
-- Inputs: ?1 the number of that lane, ?2 the maximum number of lanes
-- Result: id
SELECT id FROM lane WHERE id > ?1 ORDER BY id LIMIT ?2;

-- name: list_next_tenants
-- List tenants after one of them.
-- Inputs: ?1 the number of that tenant, ?2 the maximum number of tenants
-- Result: id
SELECT id FROM tenant WHERE id > ?1 ORDER BY id LIMIT ?2;

-- name: delete_idle_lanes
-- Delete those of these lanes that have no job in any state. What a lane has in the small tables and in indexes is tested first: the
-- other tables are read only if a lane may be idle.
-- Inputs: ?1 JSON array of lanes
-- Result: id of each deleted lane
DELETE FROM lane WHERE id IN (
    SELECT l.value FROM json_each(?1) AS l
    WHERE NOT EXISTS (SELECT 1 FROM finished_count AS f WHERE f.lane = l.value AND f.number > 0)
        AND NOT EXISTS (SELECT 1 FROM ready AS r WHERE r.lane = l.value)
        AND NOT EXISTS (SELECT 1 FROM tenant_turn AS t WHERE t.main_lane = l.value)
        AND l.value NOT IN (SELECT lane & 1048575 FROM lease)
        AND l.value NOT IN (SELECT lane FROM changed_key)
        AND l.value NOT IN (SELECT lane FROM parked)
        AND l.value NOT IN (SELECT lane & 1048575 FROM scheduled)
)
RETURNING id;

-- name: delete_idle_tenants
-- Delete those of these tenants that have no share and no unfinished job.
-- Inputs: ?1 JSON array of tenants
-- Result: id of each deleted tenant
DELETE FROM tenant WHERE id IN (
    SELECT t.value FROM json_each(?1) AS t
    WHERE t.value NOT IN (SELECT tenant FROM tenant_share)
        AND t.value NOT IN (SELECT tenant FROM tenant_turn)
        AND t.value NOT IN (SELECT lane >> 20 FROM lease)
        AND t.value NOT IN (SELECT j.lane >> 20 FROM parked AS p CROSS JOIN job AS j ON j.seq = p.seq)
        AND t.value NOT IN (SELECT lane >> 20 FROM scheduled)
)
RETURNING id;

-- name: delete_counts_of_lanes
-- Delete the counts of deleted lanes, which are 0.
-- Inputs: ?1 JSON array of lanes
DELETE FROM finished_count WHERE lane IN (SELECT value FROM json_each(?1));
