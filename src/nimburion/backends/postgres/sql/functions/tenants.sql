-- Turns of tenants: who is next in a queue, what its job is charged, and what a lease that ended used.
-- core/fairness.py explains the arithmetic.
--
-- The lanes of one queue, rank and tenant have one share (`lane.share`), which is charged for all of them.
-- A lane with a tenant has a number below 0. Its jobs wait in `ready` like others; `add_turn_1` and others keep its row of `tenant_turn`,
-- the first job of the lane. These lanes have no late lanes and no low-water marks.
-- Locks: the rows of `share_class`, by queue and rank, after the limits. Who reserves or settles jobs of tenants holds them.
-- An enqueue holds a row of `tenant_turn` of its lane FOR KEY SHARE, so the row of a lane that is about to get a job is not
-- deleted. If it finds none, it adds one of its own (`arrival`). It locks no row that an exchange changes, because a caller's
-- transaction may stay open for long. Exchanges merge the added rows into the row of the lane.
-- Rows of empty lanes are deleted with SKIP LOCKED. A row that stays may name a job that is gone, and its lane may be empty.
-- A function that reads it therefore also reads `ready`.

-- name: add_turn
-- Keep `tenant_turn` when a job of a tenant begins to wait. If its lane was empty and its tenant is new or below the minimum, the
-- tenant joins behind those that wait: at the minimum plus the charge of its next job. For a job that was parked it only catches up
-- with the minimum.
CREATE OR REPLACE FUNCTION {schema}.add_turn_1() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    turn record;
    place {schema}.lane;
    own {schema}.tenant_share;
    least int8;
    used int8;
BEGIN
    SELECT * INTO place FROM {schema}.lane a WHERE a.id = NEW.lane;
    SELECT t.due, t.seq, t.virtual_time INTO turn FROM {schema}.tenant_turn t WHERE t.share = place.share AND t.lane = NEW.lane
    ORDER BY t.arrival LIMIT 1 FOR KEY SHARE;
    IF NOT FOUND THEN
        -- Shares and share classes are only read: exchanges change these rows.
        least := coalesce((
            SELECT f.min_virtual_time FROM {schema}.share_class f WHERE f.queue = place.queue AND f.rank = place.rank
        ), 0);
        SELECT s.* INTO own FROM {schema}.tenant_share s WHERE s.share = place.share;
        used := coalesce(own.virtual_time, (
            SELECT max(t.virtual_time) FROM {schema}.tenant_turn t WHERE t.share = place.share
        ));
        IF (used >= least) IS NOT TRUE AND NOT EXISTS (SELECT FROM {schema}.parked p WHERE p.seq = NEW.seq) THEN
            least := least + {schema}.compute_next_charge_1(coalesce(own.mean_run_time, 0), coalesce(own.unmeasured, 0),
                coalesce((SELECT CAST(w.units AS int8) FROM {schema}.tenant_weight w WHERE w.tenant = place.tenant), 100));
        END IF;
        turn.virtual_time := GREATEST(used, least);
    ELSIF (NEW.due, NEW.seq) >= (turn.due, turn.seq) THEN
        RETURN NULL;
    END IF;
    INSERT INTO {schema}.tenant_turn (share, lane, arrival, queue, name, rank, virtual_time, due, seq, is_raised)
    VALUES (place.share, place.id, NEW.seq, place.queue, place.name, place.rank, turn.virtual_time, NEW.due, NEW.seq,
        coalesce(used < least, false))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- Only for jobs of tenants.
CREATE OR REPLACE TRIGGER ready_added AFTER INSERT ON {schema}.ready FOR EACH ROW WHEN (NEW.lane < 0)
EXECUTE FUNCTION {schema}.add_turn_1();

-- name: remove_turn
-- Keep `tenant_turn` when a job of a tenant does not wait any more, and was not reserved.
-- Inputs: the lane of the job, and its seq
CREATE OR REPLACE FUNCTION {schema}.remove_turn_1(p_lane int4, p_seq int8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    own_share int4 := (SELECT a.share FROM {schema}.lane a WHERE a.id = p_lane);
    turn record;
    next_job record;
BEGIN
    SELECT t.due, t.seq INTO turn FROM {schema}.tenant_turn t
    WHERE t.share = own_share AND t.lane = p_lane AND t.arrival = 0;
    IF NOT FOUND OR turn.seq <> p_seq THEN
        RETURN;
    END IF;
    SELECT r.due, r.seq INTO next_job FROM {schema}.ready r WHERE r.lane = p_lane ORDER BY r.due, r.seq LIMIT 1;
    IF FOUND THEN
        UPDATE {schema}.tenant_turn t SET due = next_job.due, seq = next_job.seq
        WHERE t.share = own_share AND t.lane = p_lane AND t.arrival = 0 AND t.seq = p_seq;
    ELSE
        PERFORM {schema}.remove_empty_turns_1(ARRAY[own_share]);
    END IF;
END $$;

-- name: remove_empty_turns
-- Delete the rows of `tenant_turn` whose lanes have no jobs.
-- Inputs: shares
-- Locks: these rows; rows that another transaction has locked are skipped
-- Atomic: a lane is read again after its row is locked, because an enqueue may have added a job and ended in between. A transaction
--   above READ COMMITTED would not see that job, so it deletes nothing.
CREATE OR REPLACE FUNCTION {schema}.remove_empty_turns_1(p_shares int4[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    locked tid[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;
    END IF;
    locked := ARRAY(
        SELECT t.ctid FROM {schema}.tenant_turn t
        WHERE t.share = ANY (p_shares) AND NOT EXISTS (SELECT FROM {schema}.ready r WHERE r.lane = t.lane OFFSET 0)
        FOR UPDATE SKIP LOCKED
    );
    IF locked <> '{}' THEN
        DELETE FROM {schema}.tenant_turn t WHERE t.ctid = ANY (locked)
            AND NOT EXISTS (SELECT FROM {schema}.ready r WHERE r.lane = t.lane OFFSET 0);
    END IF;
END $$;

-- name: admit_turns
-- Merge the rows of `tenant_turn` that enqueues added into the rows of their lanes. Raise the shares of tenants whose lane was
-- empty when a job came, to the virtual time at which they joined (`add_turn_1`).
-- Inputs: the queues whose share classes the caller has locked; NULL: all. The rows of other queues are left alone: a transaction that
--   holds their share classes changes them, and may wait for a row of this caller.
-- Locks: the rows of the lanes, by share and lane, then the added rows. An added row that an enqueue has locked stays, and is merged
--   again later.
-- Atomic: a row that was added is deleted only while the row of its lane is locked. So a lane with jobs always keeps a row.
CREATE OR REPLACE FUNCTION {schema}.admit_turns_1(p_queues text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    shares int4[];
    raised_shares int4[];
    merged_lanes int4[];
BEGIN
    shares := ARRAY(
        SELECT DISTINCT t.share FROM {schema}.tenant_turn t
        WHERE t.arrival > 0 AND (p_queues IS NULL OR t.queue = ANY (p_queues)) ORDER BY 1
    );
    IF shares = '{}' THEN
        RETURN;
    END IF;
    WITH raised AS (
        UPDATE {schema}.tenant_turn t SET is_raised = false WHERE t.is_raised AND t.arrival > 0 AND t.share = ANY (shares)
        RETURNING t.share, t.virtual_time
    ), raised_share AS (
        INSERT INTO {schema}.tenant_share AS s (share, queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
        SELECT r.share, a.queue, a.rank, a.tenant, r.virtual_time, 0, 0
        FROM (SELECT r.share, max(r.virtual_time) AS virtual_time FROM raised r GROUP BY 1) r
        CROSS JOIN LATERAL (SELECT * FROM {schema}.lane a WHERE a.id = r.share OFFSET 0) a
        ON CONFLICT (share) DO UPDATE SET virtual_time = GREATEST(s.virtual_time, excluded.virtual_time)
        RETURNING s.share
    )
    SELECT array_agg(r.share) INTO raised_shares FROM raised_share r;
    IF raised_shares IS NOT NULL THEN
        PERFORM {schema}.rank_turns_1(raised_shares);
    END IF;
    WITH merged AS (
        INSERT INTO {schema}.tenant_turn AS t (share, lane, arrival, queue, name, rank, virtual_time, due, seq, is_raised)
        SELECT n.share, n.lane, 0, n.queue, n.name, n.rank, coalesce(s.virtual_time, n.virtual_time), j.due, j.seq, false
        FROM (
            SELECT DISTINCT ON (t.share, t.lane) t.* FROM {schema}.tenant_turn t
            WHERE t.arrival > 0 AND t.share = ANY (shares) ORDER BY t.share, t.lane, t.virtual_time DESC
        ) n
        CROSS JOIN LATERAL (
            SELECT r.due, r.seq FROM {schema}.ready r WHERE r.lane = n.lane ORDER BY r.due, r.seq LIMIT 1
        ) j
        LEFT JOIN LATERAL (SELECT s.virtual_time FROM {schema}.tenant_share s WHERE s.share = n.share OFFSET 0) s ON true
        ORDER BY n.share, n.lane
        ON CONFLICT (share, lane, arrival) DO UPDATE SET due = excluded.due, seq = excluded.seq
        RETURNING t.lane
    )
    SELECT array_agg(m.lane) INTO merged_lanes FROM merged m;
    DELETE FROM {schema}.tenant_turn WHERE ctid = ANY (ARRAY(
        SELECT t.ctid FROM {schema}.tenant_turn t
        WHERE t.arrival > 0 AND t.share = ANY (shares) AND t.lane = ANY (merged_lanes) FOR UPDATE SKIP LOCKED
    ));
    PERFORM {schema}.remove_empty_turns_1(shares);
END $$;

-- name: lock_share_classes
-- Lock the turns of queues, and those of the jobs that a session settles.
-- Inputs: the queues; the session; the seqs
-- Locks: the rows of `share_class`, by queue and rank
CREATE OR REPLACE FUNCTION {schema}.lock_share_classes_1(p_queues text[], p_session int4, p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    settled text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM {schema}.share_class f WHERE f.queue <> ALL (p_queues)) THEN
        settled := ARRAY(
            SELECT DISTINCT s.queue FROM unnest(p_seqs) AS u (seq)
            CROSS JOIN LATERAL (SELECT * FROM {schema}.lease l WHERE l.session = p_session AND l.seq = u.seq OFFSET 0) l
            CROSS JOIN LATERAL (SELECT * FROM {schema}.tenant_share s WHERE s.share = l.share OFFSET 0) s
        );
    END IF;
    INSERT INTO {schema}.share_class (queue, rank, min_virtual_time)
    SELECT q.queue, r.rank, 0 FROM (SELECT DISTINCT u.queue FROM unnest(p_queues) AS u (queue)) q, generate_series(0, 9) AS r (rank)
    WHERE NOT EXISTS (SELECT FROM {schema}.share_class f WHERE f.queue = q.queue AND f.rank = r.rank OFFSET 0)
        -- OFFSET 0: else the planner may read the turns of all tenants to join them
        AND EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = q.queue AND t.rank = r.rank OFFSET 0)
    ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    PERFORM FROM {schema}.share_class f WHERE f.queue = ANY (p_queues || settled) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    PERFORM {schema}.admit_turns_1(p_queues || settled);
END $$;

-- name: compute_charge
-- Return what a run time adds to a virtual time.
-- Inputs: the run time in microseconds; the weight in hundredths
-- Result: microseconds
CREATE OR REPLACE FUNCTION {schema}.compute_charge_1(p_run_time int8, p_units int8) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT LEAST(GREATEST(p_run_time, 1000), 86400000000) * 100 / p_units
$$;

-- name: compute_next_charge
-- Return what the next job of a tenant is charged when it is reserved.
-- Inputs: the mean run time of the tenant (0: no job has ended yet); the number of jobs that were reserved before; its weight in
--   hundredths
-- Result: microseconds
CREATE OR REPLACE FUNCTION {schema}.compute_next_charge_1(p_mean int8, p_unmeasured int8, p_units int8) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT {schema}.compute_charge_1(
        CASE WHEN p_mean = 0 THEN CAST(100000 AS int8) << CAST(LEAST(p_unmeasured, 9) AS int4) ELSE p_mean END, p_units)
$$;

-- name: settle_charges
-- Replace the charges of leases that end by what their jobs used. It comes before the leases are deleted.
-- Inputs: the time; the session; seqs, in the order of the settlements; for each, as for `settle_each_1`, its kind (NULL: all are
--   completions); fences and nonces: other leases are left out
-- Arrays of shares are sorted, so that `width_bucket` finds the place of a share in them.
CREATE OR REPLACE FUNCTION {schema}.settle_charges_1(
    p_now int8, p_session int4, p_seqs int8[], p_kinds text, p_fences int4[], p_nonces bytea[]
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    has_weights bool := EXISTS (SELECT FROM {schema}.tenant_weight);
    shares int4[];
    changes int8[];
    run_times int8[];   -- of all shares, and where those of each share end
    ends int4[];
    times int8[];
BEGIN
    WITH ended AS (
        SELECT DISTINCT ON (l.seq) l.share, l.charge, u.place, l.units,
            CASE WHEN p_kinds IS NULL OR substr(p_kinds, CAST(u.place AS int4), 1) <> 'u'
                THEN LEAST(GREATEST(p_now - l.leased_at, 0), 86400000000) END AS run_time
        FROM unnest(p_seqs, p_fences, p_nonces) WITH ORDINALITY AS u (seq, fence, nonce, place)
        CROSS JOIN LATERAL (
            SELECT l.*, coalesce(CASE WHEN has_weights THEN (
                SELECT CAST(w.units AS int8) FROM {schema}.lane a JOIN {schema}.tenant_weight w ON w.tenant = a.tenant
                WHERE a.id = l.share
            ) END, 100) AS units
            FROM {schema}.lease l WHERE l.session = p_session AND l.seq = u.seq AND l.fence = u.fence AND l.nonce = u.nonce
            OFFSET 0
        ) l
        WHERE l.share IS NOT NULL AND (p_kinds IS NULL OR substr(p_kinds, CAST(u.place AS int4), 1) NOT IN ('p', 'e', 't', 'g'))
        ORDER BY l.seq, u.place
    ), used AS MATERIALIZED (
        SELECT e.share, e.place, e.run_time, e.charge, CASE WHEN e.run_time IS NULL THEN 0
            ELSE {schema}.compute_charge_1(e.run_time, e.units) END AS used
        FROM ended e
    ), summed AS (
        SELECT u.share, CAST(sum(u.used - u.charge) AS int8) AS change, CAST(sum(count(*)) OVER (ORDER BY u.share) AS int4) AS last
        FROM used u GROUP BY 1
    )
    SELECT array_agg(s.share ORDER BY s.share), array_agg(s.change ORDER BY s.share), array_agg(s.last ORDER BY s.share),
        ARRAY(SELECT u.run_time FROM used u ORDER BY u.share, u.place)
    INTO shares, changes, ends, run_times FROM summed s;
    IF shares IS NULL THEN
        RETURN;
    END IF;
    WITH changed AS (
        UPDATE {schema}.tenant_share s SET virtual_time = s.virtual_time + changes[width_bucket(s.share, shares)],
            mean_run_time = CASE WHEN ends[width_bucket(s.share, shares)] = coalesce(ends[width_bucket(s.share, shares) - 1], 0) + 1
                THEN {schema}.add_run_time_1(s.mean_run_time, run_times[ends[width_bucket(s.share, shares)]])
                ELSE {schema}.compute_mean_1(s.mean_run_time, run_times[
                    coalesce(ends[width_bucket(s.share, shares) - 1], 0) + 1:ends[width_bucket(s.share, shares)]
                ]) END
        WHERE s.share = ANY (shares) RETURNING s.share, s.virtual_time
    )
    SELECT array_agg(c.share ORDER BY c.share), array_agg(c.virtual_time ORDER BY c.share) INTO shares, times FROM changed c;
    UPDATE {schema}.tenant_turn t SET virtual_time = times[width_bucket(t.share, shares)] WHERE t.share = ANY (shares);
END $$;

-- name: add_run_time
-- Add a run time to the moving mean of a tenant.
-- Inputs: the mean (0: none yet); the run time; NULL: the mean stays
-- Result: the mean
CREATE OR REPLACE FUNCTION {schema}.add_run_time_1(p_mean int8, p_run_time int8) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_run_time IS NULL THEN p_mean
        ELSE GREATEST(CASE WHEN p_mean = 0 THEN p_run_time ELSE (7 * p_mean + p_run_time) / 8 END, 1) END
$$;

-- name: compute_mean
-- Add run times to the moving mean of a tenant, in order.
-- Inputs: as for `add_run_time_1`
-- Result: the mean
CREATE OR REPLACE FUNCTION {schema}.compute_mean_1(p_mean int8, p_run_times int8[]) RETURNS int8
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    run_time int8;
BEGIN
    FOREACH run_time IN ARRAY p_run_times LOOP
        p_mean := {schema}.add_run_time_1(p_mean, run_time);
    END LOOP;
    RETURN p_mean;
END $$;

-- name: return_charge
-- Return the charge of a lease that ended without a settlement to its tenant.
-- Inputs: the share; the charge
CREATE OR REPLACE FUNCTION {schema}.return_charge_1(p_share int4, p_charge int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.tenant_share s SET virtual_time = s.virtual_time - p_charge WHERE s.share = p_share;
    PERFORM {schema}.rank_turns_1(ARRAY[p_share]);
END $$;

-- name: rank_turns
-- Give the lanes of tenants their places after their virtual times changed.
-- Inputs: the shares
CREATE OR REPLACE FUNCTION {schema}.rank_turns_1(p_shares int4[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.tenant_turn t
    SET virtual_time = (SELECT s.virtual_time FROM {schema}.tenant_share s WHERE s.share = t.share)
    WHERE t.share = ANY (p_shares);
END $$;

-- name: charge_shares
-- Store the shares that a plan has charged, and the share classes of their queues and ranks.
-- Inputs: shares (NULL: none), and for each its virtual time and the jobs that were reserved before the first run time; queues and
--   ranks, and for each the minimum. `width_bucket` finds the place of a share, so the shares are in ascending order.
CREATE OR REPLACE FUNCTION {schema}.charge_shares_1(
    p_shares int4[], p_times int8[], p_unmeasured int4[], p_queues text[], p_ranks int2[], p_minimums int8[]
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    changed int4;
BEGIN
    IF p_shares IS NULL THEN
        RETURN;
    END IF;
    UPDATE {schema}.tenant_share s SET virtual_time = p_times[width_bucket(s.share, p_shares)],
        unmeasured = p_unmeasured[width_bucket(s.share, p_shares)]
    WHERE s.share = ANY (p_shares);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed < cardinality(p_shares) THEN
        INSERT INTO {schema}.tenant_share (share, queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
        SELECT u.share, a.queue, a.rank, a.tenant, u.virtual_time, 0, u.unmeasured
        FROM unnest(p_shares, p_times, p_unmeasured) AS u (share, virtual_time, unmeasured)
        CROSS JOIN LATERAL (SELECT * FROM {schema}.lane a WHERE a.id = u.share OFFSET 0) a
        WHERE NOT EXISTS (SELECT FROM {schema}.tenant_share s WHERE s.share = u.share OFFSET 0);
    END IF;
    UPDATE {schema}.share_class f SET min_virtual_time = u.min_virtual_time
    FROM unnest(p_queues, p_ranks, p_minimums) AS u (queue, rank, min_virtual_time)
    WHERE f.queue = u.queue AND f.rank = u.rank;
END $$;

-- name: move_turns
-- Give the tenants of lanes the places of their virtual times in `tenant_turn`, and their lanes the jobs that are first now.
-- Inputs: lanes; those without a tenant are ignored
CREATE OR REPLACE FUNCTION {schema}.move_turns_1(p_lanes int4[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    shares int4[] := ARRAY(SELECT DISTINCT a.share FROM {schema}.lane a WHERE a.id = ANY (p_lanes) AND a.id < 0);
    lanes int4[];
    times int8[];       -- of these lanes: the virtual times of their tenants, and the first jobs
    dues int8[];
    seqs int8[];
    empty int4[];
BEGIN
    IF shares = '{}' THEN
        RETURN;
    END IF;
    SELECT array_agg(t.lane), array_agg(t.virtual_time), array_agg(t.due), array_agg(t.seq),
        array_agg(t.share) FILTER (WHERE t.is_empty)
    INTO lanes, times, dues, seqs, empty FROM (
        SELECT t.lane, t.share, coalesce(s.virtual_time, t.virtual_time) AS virtual_time, coalesce(r.due, t.due) AS due,
            coalesce(r.seq, t.seq) AS seq, r.seq IS NULL AS is_empty
        FROM {schema}.tenant_turn t
        LEFT JOIN LATERAL (SELECT s.virtual_time FROM {schema}.tenant_share s WHERE s.share = t.share OFFSET 0) s ON true
        LEFT JOIN LATERAL (
            SELECT r.due, r.seq FROM {schema}.ready r WHERE r.lane = t.lane ORDER BY r.due, r.seq LIMIT 1
        ) r ON true
        WHERE t.share = ANY (shares) AND t.arrival = 0 ORDER BY t.lane OFFSET 0
    ) t;
    IF empty IS NOT NULL THEN
        PERFORM {schema}.remove_empty_turns_1(empty);
    END IF;
    UPDATE {schema}.tenant_turn t SET virtual_time = times[width_bucket(t.lane, lanes)], due = dues[width_bucket(t.lane, lanes)],
        seq = seqs[width_bucket(t.lane, lanes)]
    WHERE t.share = ANY (shares) AND t.arrival = 0;
END $$;

-- name: set_tenant_weights
-- Set the weights of tenants.
-- Inputs: the tenants, and for each its weight in hundredths; 100 is the weight of all others
CREATE OR REPLACE FUNCTION {schema}.set_tenant_weights_1(p_tenants text[], p_units int4[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.tenant_weight w USING unnest(p_tenants, p_units) AS u (tenant, units)
    WHERE w.tenant = u.tenant AND u.units = 100;
    INSERT INTO {schema}.tenant_weight (tenant, units)
    SELECT u.tenant, u.units FROM unnest(p_tenants, p_units) AS u (tenant, units) WHERE u.units <> 100 ORDER BY u.tenant
    ON CONFLICT (tenant) DO UPDATE SET units = excluded.units;
END $$;

-- name: list_tenants
-- List the tenants with waiting or leased jobs, in the order of their turns.
-- Inputs: the most waiting jobs that are counted for each; the maximum number of tenants
-- Result: one row for each tenant, queue and rank; `ahead` is its virtual time beyond the minimum
CREATE OR REPLACE FUNCTION {schema}.list_tenants_1(p_most int4, p_limit int4) RETURNS TABLE (
    queue text, rank int2, tenant text, units int8, waiting int8, running int8, ahead int8
)
LANGUAGE sql STABLE ROWS 10 SET jit TO off AS $$
    SELECT * FROM (
        SELECT s.queue, s.rank, s.tenant,
            coalesce((SELECT CAST(w.units AS int8) FROM {schema}.tenant_weight w WHERE w.tenant = s.tenant), 100), (
            SELECT count(*) FROM (
                SELECT FROM (SELECT DISTINCT t.lane FROM {schema}.tenant_turn t WHERE t.share = s.share) t
                JOIN {schema}.ready r ON r.lane = t.lane LIMIT p_most
            ) w
        ) AS waiting, (
            SELECT count(*) FROM {schema}.lease l WHERE l.share = s.share
        ) AS running, s.virtual_time - coalesce(f.min_virtual_time, 0)
        FROM (
            SELECT s.share, s.queue, s.rank, s.tenant, GREATEST(s.virtual_time, (
                SELECT max(t.virtual_time) FROM {schema}.tenant_turn t WHERE t.share = s.share AND t.is_raised
            )) AS virtual_time
            FROM {schema}.tenant_share s
            UNION ALL
            SELECT t.share, a.queue, a.rank, a.tenant, t.virtual_time FROM (
                SELECT t.share, max(t.virtual_time) AS virtual_time FROM {schema}.tenant_turn t
                WHERE NOT EXISTS (SELECT FROM {schema}.tenant_share s WHERE s.share = t.share) GROUP BY 1
            ) t JOIN {schema}.lane a ON a.id = t.share
        ) s LEFT JOIN {schema}.share_class f ON f.queue = s.queue AND f.rank = s.rank
        ORDER BY s.queue, s.rank, s.virtual_time, s.tenant
    ) uses WHERE uses.waiting > 0 OR uses.running > 0 LIMIT p_limit
$$;

-- name: find_turn
-- Find where a waiting job stands in the turns of its queue.
-- Inputs: the id of the job; the maximum number of jobs before it to count
-- Result: tenant, its virtual time beyond the minimum, how many other tenants are before it, how many jobs of its lane are; no
--   row if the job does not wait for a turn
CREATE OR REPLACE FUNCTION {schema}.find_turn_1(p_id bytea, p_most int4) RETURNS TABLE (
    tenant text, ahead int8, tenants_before int8, jobs_before int8
)
LANGUAGE sql STABLE ROWS 1 SET jit TO off AS $$
    SELECT a.tenant, t.virtual_time - coalesce(f.min_virtual_time, 0), (
        SELECT count(DISTINCT o.share) FROM {schema}.tenant_turn o
        WHERE o.queue = t.queue AND o.rank = t.rank AND o.virtual_time < t.virtual_time
    ), (
        SELECT count(*) FROM (
            SELECT FROM {schema}.ready b WHERE b.lane = r.lane AND (b.due, b.seq) < (r.due, r.seq) LIMIT p_most
        ) b
    )
    FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane CROSS JOIN LATERAL (
        SELECT * FROM {schema}.tenant_turn t WHERE t.share = a.share AND t.lane = j.lane ORDER BY t.arrival LIMIT 1
    ) t JOIN {schema}.ready r ON r.lane = j.lane AND r.seq = j.seq
    LEFT JOIN {schema}.share_class f ON f.queue = t.queue AND f.rank = t.rank
    WHERE j.id = p_id
$$;

-- name: forget_tenants
-- Forget tenants without waiting and leased jobs that are not ahead of the others, and queues and ranks without such jobs.
-- A call begins after the last share that the call before it read, or with the first.
-- Inputs: the maximum number of shares to read
-- Locks: advisory lock 7048; if it is not free, nothing is done. All share classes, by queue and rank
CREATE OR REPLACE FUNCTION {schema}.forget_tenants_1(p_limit int4) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    last_read int4;
    shares int4[];
    idle {schema}.share_class[];  -- of queues and ranks without waiting and leased jobs
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.share_class) AND NOT EXISTS (SELECT FROM {schema}.tenant_turn)
        OR NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.forget_tenants_1', 7048))
    THEN
        RETURN;
    END IF;
    last_read := coalesce((SELECT c.last_read FROM {schema}.tenant_cursor c WHERE c.what = 'share'), -2147483648);
    PERFORM FROM {schema}.share_class f ORDER BY f.queue, f.rank FOR UPDATE;
    shares := ARRAY(
        (SELECT s.share FROM {schema}.tenant_share s WHERE s.share > last_read ORDER BY s.share LIMIT p_limit)
        UNION
        (SELECT t.share FROM {schema}.tenant_turn t WHERE t.share > last_read ORDER BY t.share LIMIT p_limit)
        ORDER BY 1 LIMIT p_limit
    );
    PERFORM {schema}.remove_empty_turns_1(shares);
    idle := ARRAY(
        SELECT f FROM {schema}.share_class f
        WHERE NOT EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = f.queue AND t.rank = f.rank OFFSET 0)
            AND NOT EXISTS (
                SELECT FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.share
                WHERE l.share IS NOT NULL AND a.queue = f.queue AND a.rank = f.rank OFFSET 0
            )
    );
    DELETE FROM {schema}.tenant_share s WHERE s.share = ANY (shares)
        AND NOT EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.share = s.share OFFSET 0)
        AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.share = s.share OFFSET 0)
        AND (s.virtual_time <= coalesce(
            (SELECT f.min_virtual_time FROM {schema}.share_class f WHERE f.queue = s.queue AND f.rank = s.rank), 0
        ) OR EXISTS (SELECT FROM unnest(idle) i WHERE i.queue = s.queue AND i.rank = s.rank));
    PERFORM {schema}.move_tenant_cursor_1('share', shares[p_limit]);
    IF shares[p_limit] IS NULL THEN
        DELETE FROM {schema}.share_class f USING unnest(idle) i WHERE f.queue = i.queue AND f.rank = i.rank
            AND NOT EXISTS (SELECT FROM {schema}.tenant_share s WHERE s.queue = f.queue AND s.rank = f.rank OFFSET 0);
    END IF;
END $$;

-- name: move_tenant_cursor
-- Record where the next call begins that reads shares or lanes of tenants.
-- Inputs: `share` or `lane`; the last one that was read (NULL: all were read, and the next call begins with the first)
-- Locks: the row of the cursor. The caller holds advisory lock 7048.
CREATE OR REPLACE FUNCTION {schema}.move_tenant_cursor_1(p_what text, p_last_read int4) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.tenant_cursor c WHERE c.what = p_what;
    IF p_last_read IS NOT NULL THEN
        INSERT INTO {schema}.tenant_cursor (what, last_read) VALUES (p_what, p_last_read);
    END IF;
END $$;

-- name: prune_tenant_lanes
-- Delete the lanes of tenants that have neither jobs nor a share any more, so that tenants that come and go leave no rows.
-- A call begins after the last lane that the call before it read, or with the first.
-- Inputs: the maximum number of lanes to read
-- Locks: advisory lock 7048; if it is not free, nothing is done. The lanes that it deletes; tenants with a lane that another transaction has locked are left for a later call
-- Atomic: all lanes of a share are deleted together. They are read again after they are locked, because an enqueue may have added a
--   job and ended in between; an enqueue that has not ended holds a lock. A transaction above READ COMMITTED would not see that
--   job, so it deletes nothing.
CREATE OR REPLACE FUNCTION {schema}.prune_tenant_lanes_1(p_limit int4) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    last_read int4;
    found_lanes int4[];
    unused int4[];  -- shares
    locked int4[];
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.lane a WHERE a.id < 0)
        OR current_setting('transaction_isolation') <> 'read committed'
        OR NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.forget_tenants_1', 7048))
    THEN
        RETURN;
    END IF;
    last_read := coalesce((SELECT c.last_read FROM {schema}.tenant_cursor c WHERE c.what = 'lane'), -2147483648);
    found_lanes := ARRAY(SELECT a.id FROM {schema}.lane a WHERE a.id > last_read AND a.id < 0 ORDER BY a.id LIMIT p_limit);
    PERFORM {schema}.move_tenant_cursor_1('lane', found_lanes[p_limit]);
    unused := {schema}.find_unused_shares_1(found_lanes);
    locked := ARRAY(SELECT a.id FROM {schema}.lane a WHERE a.id = ANY (unused) FOR UPDATE SKIP LOCKED);
    locked := ARRAY(
        SELECT a.id FROM {schema}.lane f JOIN {schema}.lane a ON a.queue = f.queue AND a.tenant = f.tenant AND a.rank = f.rank
        WHERE f.id = ANY (locked) FOR UPDATE OF a SKIP LOCKED
    );
    unused := {schema}.find_unused_shares_1(locked);
    DELETE FROM {schema}.lane d USING (
        SELECT f.queue, f.tenant, f.rank FROM {schema}.lane f
        WHERE f.id = ANY (unused) AND NOT EXISTS (
            SELECT FROM {schema}.lane o WHERE o.queue = f.queue AND o.tenant = f.tenant AND o.rank = f.rank AND o.id <> ALL (locked)
        )
        OFFSET 0
    ) f WHERE d.queue = f.queue AND d.tenant = f.tenant AND d.rank = f.rank;
END $$;

-- name: find_unused_shares
-- Find the shares to which nothing refers any more.
-- Inputs: lanes; only the shares that have the number of one of them are considered
-- Result: the shares
-- Atomic: one read. A job that ends is at each time in `job` or in `finished_job`.
CREATE OR REPLACE FUNCTION {schema}.find_unused_shares_1(p_lanes int4[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT f.id FROM {schema}.lane f
        WHERE f.id = ANY (p_lanes) AND f.share = f.id
            AND NOT EXISTS (SELECT FROM {schema}.tenant_share s WHERE s.share = f.id OFFSET 0)
            AND NOT EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.share = f.id OFFSET 0)
            AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.share = f.id OFFSET 0)
            AND NOT EXISTS (
                SELECT FROM {schema}.lane a, {schema}.horizon h
                WHERE a.queue = f.queue AND a.tenant = f.tenant AND a.rank = f.rank AND h.what = 'completed' AND (
                    EXISTS (SELECT FROM {schema}.job j WHERE j.lane = a.id AND j.lane < 0)
                    OR EXISTS (
                        SELECT FROM {schema}.finished_job d WHERE d.lane = a.id AND d.lane < 0 AND d.finished_at >= h.finished_at
                            AND (d.finished_at, d.seq) > (h.finished_at, h.seq)
                    )
                ) OFFSET 0
            )
    );
END $$;
