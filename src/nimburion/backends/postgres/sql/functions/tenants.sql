-- Turns of tenants: who is next in a queue, what its job is charged, and what a lease that ended used.
-- core/fairness.py explains the arithmetic.
--
-- The lanes of one queue, rank and tenant have one share (`lane.share`), which is charged for all of them.
-- A lane with a tenant has a number below 0. Its jobs wait in `ready` like others; triggers keep its row of `tenant_turn`,
-- the first job of the lane. These lanes have no late lanes and no low-water marks.
-- Locks: the rows of `tenant_floor`, by queue and rank, after the limits. Who reserves or settles jobs of tenants holds them.
-- An enqueue holds a row of `tenant_turn` of its lane FOR KEY SHARE, so the row of a lane that is about to get a job is not
-- deleted. If it finds none, it adds one of its own (`arrival`). It locks no row that an exchange changes, because a caller's
-- transaction may stay open for long. Exchanges merge the added rows into the row of the lane.
-- Rows of empty lanes are deleted with SKIP LOCKED. A row that stays may name a job that is gone, and its lane may be empty.
-- A function that reads it therefore also reads `ready`.

-- name: add_turn
-- Keep `tenant_turn` when a job of a tenant begins to wait. If its lane was empty and its tenant is new or below the floor, the
-- tenant joins behind those that wait: at the floor plus the charge of its next job. For a job that was parked it only catches up
-- with the floor.
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
        -- Shares and floors are only read: exchanges change these rows.
        least := coalesce((
            SELECT f.floor FROM {schema}.tenant_floor f WHERE f.queue = place.queue AND f.rank = place.rank
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
-- Keep `tenant_turn` when a job of a tenant does not wait any more.
CREATE OR REPLACE FUNCTION {schema}.remove_turn_1() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    own_share int4 := (SELECT a.share FROM {schema}.lane a WHERE a.id = OLD.lane);
    turn record;
    next_job record;
BEGIN
    SELECT t.due, t.seq INTO turn FROM {schema}.tenant_turn t
    WHERE t.share = own_share AND t.lane = OLD.lane AND t.arrival = 0;
    IF NOT FOUND OR turn.seq <> OLD.seq THEN
        RETURN NULL;
    END IF;
    SELECT r.due, r.seq INTO next_job FROM {schema}.ready r WHERE r.lane = OLD.lane ORDER BY r.due, r.seq LIMIT 1;
    IF FOUND THEN
        UPDATE {schema}.tenant_turn t SET due = next_job.due, seq = next_job.seq
        WHERE t.share = own_share AND t.lane = OLD.lane AND t.arrival = 0 AND t.seq = OLD.seq;
    ELSE
        PERFORM {schema}.remove_empty_turns_1(ARRAY[own_share]);
    END IF;
    RETURN NULL;
END $$;

-- The trigger fires only for jobs of tenants. It does not fire while `charge_turns_1` is about to move all turns of an exchange
-- at once. It does not fire for a replacement either, which may be in a caller's transaction. The next exchange that reads the
-- turn moves it.
CREATE OR REPLACE TRIGGER ready_removed AFTER DELETE ON {schema}.ready FOR EACH ROW
WHEN (OLD.lane < 0 AND current_setting('nimburion.moves_turns', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION {schema}.remove_turn_1();

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
-- Inputs: the queues whose floors the caller has locked; NULL: all. The rows of other queues are left alone: a transaction that
--   holds their floors changes them, and may wait for a row of this caller.
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

-- name: lock_floors
-- Lock the turns of queues, and those of the jobs that a session settles.
-- Inputs: the queues; the session; the seqs
-- Locks: the rows of `tenant_floor`, by queue and rank
CREATE OR REPLACE FUNCTION {schema}.lock_floors_1(p_queues text[], p_session int4, p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    settled text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM {schema}.tenant_floor f WHERE f.queue <> ALL (p_queues)) THEN
        settled := ARRAY(
            SELECT DISTINCT s.queue FROM unnest(p_seqs) AS u (seq)
            CROSS JOIN LATERAL (SELECT * FROM {schema}.lease l WHERE l.session = p_session AND l.seq = u.seq OFFSET 0) l
            CROSS JOIN LATERAL (SELECT * FROM {schema}.tenant_share s WHERE s.share = l.share OFFSET 0) s
        );
    END IF;
    INSERT INTO {schema}.tenant_floor (queue, rank, floor)
    SELECT q.queue, r.rank, 0 FROM (SELECT DISTINCT u.queue FROM unnest(p_queues) AS u (queue)) q, generate_series(0, 9) AS r (rank)
    WHERE NOT EXISTS (SELECT FROM {schema}.tenant_floor f WHERE f.queue = q.queue AND f.rank = r.rank OFFSET 0)
        -- OFFSET 0: else the planner may read the turns of all tenants to join them
        AND EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = q.queue AND t.rank = r.rank OFFSET 0)
    ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    PERFORM FROM {schema}.tenant_floor f WHERE f.queue = ANY (p_queues || settled) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
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

-- name: find_next_turn
-- Find the job of a queue whose turn is next, and lock it.
-- Inputs: the queue; the names whose jobs may be taken; lanes to leave out; the row that was found before in the same exchange
--   (NULL: none). While jobs are reserved, rows only move back, and no name is added. So no row before that one is read again.
-- Result: the row of `tenant_turn`, which names that job; NULL: there is none. If another transaction has locked the first job of
--   the lane, due time and seq are those of the first that is not locked. `skipped`: further lanes to leave out
-- Locks: the row of `ready`; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.find_next_turn_1(
    p_queue text, p_names text[], p_skipped int4[], p_found {schema}.tenant_turn, OUT turn {schema}.tenant_turn, OUT skipped int4[]
)
LANGUAGE plpgsql AS $$
DECLARE
    first_job record;
    free_job record;
    found_rank int2 := coalesce((p_found).rank, 0::int2);
    found_time int8 := coalesce((p_found).virtual_time, {schema}.get_lowest_time_1());
    found_due int8 := coalesce((p_found).due, {schema}.get_lowest_time_1());
    found_seq int8 := coalesce((p_found).seq, 0);
BEGIN
    skipped := p_skipped;
    LOOP
        SELECT t.* INTO turn FROM {schema}.tenant_turn t
        WHERE t.queue = p_queue AND t.arrival = 0
            AND (t.rank, t.virtual_time, t.due, t.seq) >= (found_rank, found_time, found_due, found_seq) AND t.name = ANY (p_names) AND t.lane <> ALL (skipped)
        ORDER BY t.rank, t.virtual_time, t.due, t.seq LIMIT 1;
        IF NOT FOUND THEN
            turn := NULL;
            RETURN;
        END IF;
        PERFORM FROM {schema}.ready r WHERE r.lane = turn.lane AND r.due = turn.due AND r.seq = turn.seq
        FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            RETURN;
        END IF;
        SELECT r.due, r.seq INTO first_job FROM {schema}.ready r WHERE r.lane = turn.lane ORDER BY r.due, r.seq LIMIT 1;
        IF NOT FOUND THEN
            skipped := skipped || turn.lane;  -- a transaction is about to add its job: a later exchange sees it
        ELSIF (first_job.due, first_job.seq) = (turn.due, turn.seq) THEN  -- another transaction has locked the job
            SELECT r.due, r.seq INTO free_job FROM {schema}.ready r WHERE r.lane = turn.lane
            ORDER BY r.due, r.seq LIMIT 1 FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                turn.due := free_job.due;
                turn.seq := free_job.seq;
                RETURN;
            END IF;
            skipped := skipped || turn.lane;
        ELSE
            UPDATE {schema}.tenant_turn t SET due = first_job.due, seq = first_job.seq
            WHERE t.share = turn.share AND t.lane = turn.lane AND t.arrival = 0;
        END IF;
    END LOOP;
END $$;

-- name: lease_turn
-- Lease a job of a tenant to a session, and charge it to the tenant.
-- Inputs: the time; the session; its exchange and nonce; the row of `tenant_turn` that names the job; its position in the reply; the numbers of its keys (NULL: none)
CREATE OR REPLACE FUNCTION {schema}.lease_turn_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_turn {schema}.tenant_turn, p_place int4, p_keys int8[]
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    status int2;
    attempts {schema}.attempt_state;
    charge int8 := {schema}.charge_turn_1(p_turn);
BEGIN
    DELETE FROM {schema}.ready r WHERE r.lane = p_turn.lane AND r.due = p_turn.due AND r.seq = p_turn.seq
    RETURNING r.attempt_status INTO status;
    IF status > 0 THEN
        attempts := {schema}.get_attempt_state_1(p_turn.seq);
    END IF;
    INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence, failures, lost,
        attempt_status, extra_flags, nonce, settled_token, share, charge, key_numbers)
    VALUES (p_turn.seq, p_turn.due, p_now, p_number, p_session, p_turn.lane, p_place, coalesce(attempts.fence, 0) + 1,
        coalesce(attempts.failures, 0), coalesce(attempts.lost, 0), status, coalesce(attempts.extra_flags, 0::int2), p_nonce,
        attempts.settled_token, p_turn.share, charge, p_keys);
END $$;

-- name: charge_turn
-- Charge a job to its tenant.
-- Inputs: the row of `tenant_turn` that names the job
-- Result: the charge
CREATE OR REPLACE FUNCTION {schema}.charge_turn_1(p_turn {schema}.tenant_turn) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    own {schema}.tenant_share;
    start int8;
    charge int8;
BEGIN
    INSERT INTO {schema}.tenant_share (share, queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
    SELECT a.id, a.queue, a.rank, a.tenant, p_turn.virtual_time, 0, 0 FROM {schema}.lane a WHERE a.id = p_turn.share
    ON CONFLICT DO NOTHING;
    SELECT s.* INTO own FROM {schema}.tenant_share s WHERE s.share = p_turn.share;
    start := GREATEST(own.virtual_time, (
        SELECT f.floor FROM {schema}.tenant_floor f WHERE f.queue = own.queue AND f.rank = own.rank
    ));
    charge := {schema}.compute_next_charge_1(own.mean_run_time, own.unmeasured,
        coalesce((SELECT CAST(w.units AS int8) FROM {schema}.tenant_weight w WHERE w.tenant = own.tenant), 100));
    INSERT INTO {schema}.tenant_floor AS f (queue, rank, floor)  -- there is none if the first job became due in this exchange
    VALUES (own.queue, own.rank, start) ON CONFLICT (queue, rank) DO UPDATE SET floor = excluded.floor;
    UPDATE {schema}.tenant_share s SET virtual_time = start + charge,
        unmeasured = s.unmeasured + CASE WHEN s.mean_run_time = 0 THEN 1 ELSE 0 END
    WHERE s.share = own.share;
    UPDATE {schema}.tenant_turn t SET virtual_time = start + charge WHERE t.share = own.share;
    RETURN charge;
END $$;

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
        WHERE l.share IS NOT NULL AND (p_kinds IS NULL OR substr(p_kinds, CAST(u.place AS int4), 1) NOT IN ('p', 'e'))
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

-- name: plan_plain_turns
-- Do the same as `plan_turns_1` where no limit, cap or size can hold a job back: then all places can be computed at once.
-- A tenant's jobs of one rank are in the order of due time and seq. Job number k of a tenant starts at its virtual time, or at
-- the floor if that is higher, plus k charges. The order of the starts is the order of the turns.
-- Inputs: as for `plan_turns_1`
-- Result: as of `plan_turns_1`; the caller leases the jobs (`lease_planned_jobs_1`) and then charges them (`charge_turns_1`)
--   shares, starts, charges   for each job the share of its tenant, its start and its charge; NULL: it has no tenant
--   has_more                  whether more jobs are known to wait in the only requested lane; NULL: unknown
-- It reads few jobs of each tenant, and few tenants, until what it has not read comes after the first job of the queue that it
-- does not take.
CREATE OR REPLACE FUNCTION {schema}.plan_plain_turns_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_main_lanes int4[], p_request_indexes int4[],
    p_ranks int2[], p_levels int8[], p_low_water_marks int8[], p_queues text[], p_names text[], p_queue_levels int8[],
    OUT seqs int8[], OUT dues int8[], OUT lanes int4[], OUT main_lanes int4[], OUT shares int4[], OUT starts int8[],
    OUT charges int8[], OUT turn_lanes int4[], OUT has_more bool
) LANGUAGE plpgsql AS $$
DECLARE
    chunks int4[] := array_fill(p_total + 1, ARRAY[coalesce(cardinality(p_ids), 0)]);
    turn_limit int4 := p_total + 1;
    turn_count int4 := (
        SELECT count(*) FROM (
            SELECT FROM {schema}.tenant_turn t WHERE t.queue = ANY (p_queues) AND t.arrival = 0 LIMIT p_total + 1
        ) t
    );
    job_limit int4 := CASE WHEN turn_count > p_total THEN 1 ELSE 4 + p_total / GREATEST(1, turn_count) END;
    has_weights bool := EXISTS (SELECT FROM {schema}.tenant_weight);
    needs_jobs bool;
    needs_turns bool;
    first_turns record;
BEGIN
    IF turn_count > p_total AND cardinality(p_queues) = 1 AND p_ids = '{}' THEN
        first_turns := {schema}.plan_first_turns_1(p_total, p_queues[1], p_names[1], has_weights);
        IF first_turns.is_complete THEN
            seqs := first_turns.seqs;
            dues := first_turns.dues;
            lanes := first_turns.lanes;
            main_lanes := first_turns.lanes;
            shares := first_turns.shares;
            starts := first_turns.starts;
            charges := first_turns.charges;
            turn_lanes := first_turns.lanes;
            has_more := true;
            RETURN;
        END IF;
    END IF;
    LOOP
        WITH requested AS MATERIALIZED (
            SELECT u.queue, min(u.level) AS level, array_agg(u.name) AS names FROM unnest(p_queues, p_names, p_queue_levels) AS u (queue, name, level)
            GROUP BY u.queue
        ), turn AS MATERIALIZED (
            SELECT r.level, t.*, coalesce(CAST(w.units AS int8), 100) AS units, coalesce(s.mean_run_time, 0) AS mean_run_time,
                coalesce(s.unmeasured, 0) AS unmeasured,
                GREATEST(s.virtual_time, f.floor, CASE WHEN s.virtual_time IS NULL THEN t.virtual_time END) AS first_start
            FROM requested r
            CROSS JOIN LATERAL (
                SELECT t.*, row_number() OVER o AS place FROM {schema}.tenant_turn t
                WHERE t.queue = r.queue AND t.name = ANY (r.names) AND t.arrival = 0
                    AND EXISTS (SELECT FROM {schema}.ready z WHERE z.lane = t.lane OFFSET 0)
                WINDOW o AS (ORDER BY t.rank, t.virtual_time, t.due, t.seq)
                ORDER BY t.rank, t.virtual_time, t.due, t.seq LIMIT turn_limit
            ) t
            LEFT JOIN LATERAL (SELECT * FROM {schema}.tenant_share s WHERE s.share = t.share OFFSET 0) s ON true
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.tenant_floor f WHERE f.queue = t.queue AND f.rank = t.rank OFFSET 0
            ) f ON true
            LEFT JOIN LATERAL (
                SELECT w.units FROM {schema}.lane a JOIN {schema}.tenant_weight w ON w.tenant = a.tenant
                WHERE has_weights AND a.id = t.share OFFSET 0
            ) w ON true
        ), numbered AS (
            SELECT t.*, j.due AS job_due, j.seq AS job_seq, j.nth = job_limit AS is_end,
                row_number() OVER (PARTITION BY t.share ORDER BY j.due, j.seq) - 1 AS k
            FROM turn t CROSS JOIN LATERAL (
                SELECT r.due, r.seq, row_number() OVER (ORDER BY r.due, r.seq) AS nth
                FROM {schema}.ready r WHERE r.lane = t.lane ORDER BY r.due, r.seq LIMIT job_limit
            ) j
        ), charged AS (
            SELECT n.*, {schema}.compute_next_charge_1(n.mean_run_time, n.unmeasured + n.k, n.units) AS charge
            FROM numbered n
        ), started AS (
            SELECT c.*, c.first_start + coalesce(sum(c.charge) OVER (
                PARTITION BY c.share ORDER BY c.k ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0)::int8 AS start
            FROM charged c
        ), placed AS MATERIALIZED (
            SELECT s.queue, s.lane, s.share, s.job_due AS due, s.job_seq AS seq, s.k, s.start, s.charge, s.is_end,
                ARRAY[s.rank, CASE WHEN s.k = 0 THEN s.virtual_time ELSE s.start END] AS turn_key, max(ARRAY[
                    -s.level - CASE WHEN p_ageing > 0 AND p_now > s.job_due THEN (p_now - s.job_due) / p_ageing ELSE 0 END,
                    s.rank, s.job_due, s.job_seq
                ]) OVER w AS worst, row_number() OVER w AS place,
                CASE WHEN s.place = turn_limit THEN ARRAY[s.rank, s.virtual_time] END AS last_key, s.rank
            FROM started s
            WINDOW w AS (
                PARTITION BY s.queue ORDER BY s.rank, CASE WHEN s.k = 0 THEN s.virtual_time ELSE s.start END, s.job_due, s.job_seq
                ROWS UNBOUNDED PRECEDING
            )
        ), taken AS MATERIALIZED (
            SELECT p.worst, p.place, p.seq, p.due, p.lane, p.lane AS main_lane, p.share, p.start, p.charge, p.queue,
                CASE WHEN p.is_end THEN ARRAY[p.rank, p.start + p.charge] END AS next_key
            FROM placed p
            UNION ALL
            SELECT m.worst, m.place, m.seq, m.due, p_ids[m.lane_index], p_main_lanes[m.lane_index], NULL, NULL, NULL, NULL, NULL
            FROM {schema}.merge_keyed_lanes_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, chunks,
                p_names, '{}') m
            WHERE p_ids <> '{}'
            ORDER BY 1, 2 LIMIT p_total
        ), ends AS (  -- of each queue
            SELECT t.queue, max(t.place) AS place, min(t.next_key) AS next_key FROM taken t WHERE t.charge IS NOT NULL GROUP BY 1
        )
        SELECT array_agg(t.seq ORDER BY t.worst, t.place), array_agg(t.due ORDER BY t.worst, t.place),
            array_agg(t.lane ORDER BY t.worst, t.place), array_agg(t.main_lane ORDER BY t.worst, t.place),
            array_agg(t.share ORDER BY t.worst, t.place), array_agg(t.start ORDER BY t.worst, t.place), array_agg(t.charge ORDER BY t.worst, t.place),
            array_agg(DISTINCT t.lane) FILTER (WHERE t.charge IS NOT NULL), (
                -- The next job of a tenant is not read: does it come before the first that is not taken?
                SELECT bool_or(e.next_key IS NOT NULL AND (p.turn_key IS NULL OR e.next_key <= p.turn_key))
                FROM ends e LEFT JOIN placed p ON p.queue = e.queue AND p.place = e.place + 1
            ), (
                -- Other tenants are not read. They come before a job that is not the first of its tenant, unless it is before the
                -- last tenant that is read.
                SELECT bool_or(p.k > 0 AND p.turn_key >= l.last_key)
                FROM ends e JOIN placed p ON p.queue = e.queue AND p.place = e.place + 1
                JOIN placed l ON l.queue = e.queue AND l.last_key IS NOT NULL
            )
        INTO seqs, dues, lanes, main_lanes, shares, starts, charges, turn_lanes, needs_jobs, needs_turns FROM taken t;
        EXIT WHEN (needs_jobs IS NOT TRUE OR job_limit > p_total) AND needs_turns IS NOT TRUE;
        IF needs_jobs THEN
            job_limit := LEAST(4 * job_limit, p_total + 1);
        END IF;
        IF needs_turns THEN
            turn_limit := 2 * turn_limit;
        END IF;
    END LOOP;
END $$;

-- name: plan_first_turns
-- Do the same as `plan_plain_turns_1` where one queue and name is requested, only jobs of tenants wait, and each of the first
-- tenants has one turn: then the order of `tenant_turn` is the order of the jobs.
-- Inputs: the maximum number of jobs; queue and name; whether any tenant has a weight
-- Result: as of `plan_plain_turns_1`
--   is_complete   whether this is so: no tenant has a second turn among them, and all rows name the first job of their lane
CREATE OR REPLACE FUNCTION {schema}.plan_first_turns_1(
    p_total int4, p_queue text, p_name text, p_has_weights bool,
    OUT seqs int8[], OUT dues int8[], OUT lanes int4[], OUT shares int4[], OUT starts int8[], OUT charges int8[], OUT is_complete bool
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(t.seq) FILTER (WHERE NOT t.is_last), array_agg(t.due) FILTER (WHERE NOT t.is_last),
        array_agg(t.lane) FILTER (WHERE NOT t.is_last), array_agg(t.share) FILTER (WHERE NOT t.is_last),
        array_agg(t.start) FILTER (WHERE NOT t.is_last), array_agg(t.charge) FILTER (WHERE NOT t.is_last),
        coalesce(bool_and(t.is_current) AND bool_or(t.is_last)
            AND min(ARRAY[t.rank, t.start + t.charge]) FILTER (WHERE NOT t.is_last)
                > min(ARRAY[t.rank, t.virtual_time]) FILTER (WHERE t.is_last)
            AND count(DISTINCT t.share) = count(*), false)
    INTO seqs, dues, lanes, shares, starts, charges, is_complete
    FROM (
        SELECT t.*, {schema}.compute_next_charge_1(t.mean_run_time, t.unmeasured, t.units) AS charge
        FROM (
            SELECT t.*, coalesce(s.mean_run_time, 0) AS mean_run_time, coalesce(s.unmeasured, 0) AS unmeasured,
                GREATEST(s.virtual_time, f.floor, CASE WHEN s.virtual_time IS NULL THEN t.virtual_time END) AS start,
                coalesce(CASE WHEN p_has_weights THEN (
                    SELECT CAST(w.units AS int8) FROM {schema}.lane a JOIN {schema}.tenant_weight w ON w.tenant = a.tenant
                    WHERE a.id = t.share
                ) END, 100) AS units
            FROM (
                SELECT t.share, t.lane, t.rank, t.virtual_time, j.due, j.seq, (t.due, t.seq) = (j.due, j.seq) AS is_current,
                    row_number() OVER o > p_total AS is_last
                FROM {schema}.tenant_turn t CROSS JOIN LATERAL (
                    SELECT r.due, r.seq FROM {schema}.ready r WHERE r.lane = t.lane ORDER BY r.due, r.seq LIMIT 1
                ) j
                WHERE t.queue = p_queue AND t.name = p_name AND t.arrival = 0
                WINDOW o AS (ORDER BY t.rank, t.virtual_time, t.due, t.seq)
                ORDER BY t.rank, t.virtual_time, t.due, t.seq LIMIT p_total + 1
            ) t
            LEFT JOIN LATERAL (SELECT * FROM {schema}.tenant_share s WHERE s.share = t.share OFFSET 0) s ON true
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.tenant_floor f WHERE f.queue = p_queue AND f.rank = t.rank OFFSET 0
            ) f ON true
            OFFSET 0
        ) t OFFSET 0
    ) t;
END $$;

-- name: charge_turns
-- Charge the jobs that an exchange leased to their tenants, and move the turns of these. A planned job that another transaction
-- had locked is charged nothing.
-- Inputs: the session; the number of the exchange; whether it leased all planned jobs; seqs, shares, starts and charges of the
--   planned jobs
CREATE OR REPLACE FUNCTION {schema}.charge_turns_1(
    p_session int4, p_number int8, p_leased_all bool, p_seqs int8[], p_shares int4[], p_starts int8[], p_charges int8[]
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leased int8[];
    shares int4[];
    starts int8[];
    times int8[];
    jobs int4[];
    changed int4;
    lanes int4[];       -- of these shares, and the next job of each
    dues int8[];
    seqs int8[];
    empty int4[];
BEGIN
    IF NOT p_leased_all THEN
        leased := ARRAY(
            SELECT l.seq FROM {schema}.lease l WHERE l.session = p_session AND l.exchange_number = p_number
        );
    END IF;
    SELECT array_agg(c.share ORDER BY c.share), array_agg(c.start ORDER BY c.share), array_agg(c.virtual_time ORDER BY c.share),
        array_agg(c.jobs ORDER BY c.share)
    INTO shares, starts, times, jobs
    FROM (
        SELECT u.share, max(u.start) FILTER (WHERE u.is_leased) AS start,
            min(u.start) + CAST(sum(u.charge) FILTER (WHERE u.is_leased) AS int8) AS virtual_time,
            CAST(count(*) FILTER (WHERE u.is_leased) AS int4) AS jobs
        FROM (
            SELECT u.*, p_leased_all OR u.seq = ANY (leased) AS is_leased
            FROM unnest(p_seqs, p_shares, p_starts, p_charges) AS u (seq, share, start, charge) WHERE u.share IS NOT NULL
        ) u
        GROUP BY 1 HAVING bool_or(u.is_leased)
    ) c;
    IF shares IS NULL THEN
        RETURN;
    END IF;
    UPDATE {schema}.tenant_share s SET virtual_time = times[width_bucket(s.share, shares)],
        unmeasured = s.unmeasured + CASE WHEN s.mean_run_time = 0 THEN jobs[width_bucket(s.share, shares)] ELSE 0 END
    WHERE s.share = ANY (shares);
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed < cardinality(shares) THEN
        INSERT INTO {schema}.tenant_share (share, queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
        SELECT u.share, a.queue, a.rank, a.tenant, u.virtual_time, 0, u.jobs
        FROM unnest(shares, times, jobs) AS u (share, virtual_time, jobs)
        CROSS JOIN LATERAL (SELECT * FROM {schema}.lane a WHERE a.id = u.share OFFSET 0) a
        WHERE NOT EXISTS (SELECT FROM {schema}.tenant_share s WHERE s.share = u.share OFFSET 0);
    END IF;
    INSERT INTO {schema}.tenant_floor AS f (queue, rank, floor)
    SELECT a.queue, a.rank, max(u.start) FROM unnest(shares, starts) AS u (share, start)
    CROSS JOIN LATERAL (SELECT * FROM {schema}.lane a WHERE a.id = u.share OFFSET 0) a
    GROUP BY 1, 2
    ON CONFLICT (queue, rank) DO UPDATE SET floor = GREATEST(f.floor, excluded.floor);
    SELECT array_agg(t.lane ORDER BY t.lane), array_agg(r.due ORDER BY t.lane), array_agg(r.seq ORDER BY t.lane),
        array_agg(t.share) FILTER (WHERE r.seq IS NULL)
    INTO lanes, dues, seqs, empty
    FROM {schema}.tenant_turn t LEFT JOIN LATERAL (
        SELECT r.due, r.seq FROM {schema}.ready r WHERE r.lane = t.lane ORDER BY r.due, r.seq LIMIT 1
    ) r ON true
    WHERE t.share = ANY (shares) AND t.arrival = 0;
    IF empty IS NOT NULL THEN
        PERFORM {schema}.remove_empty_turns_1(empty);
    END IF;
    UPDATE {schema}.tenant_turn t SET virtual_time = times[width_bucket(t.share, shares)],
        due = CASE WHEN lanes[width_bucket(t.lane, lanes)] = t.lane THEN coalesce(dues[width_bucket(t.lane, lanes)], t.due) ELSE t.due END,
        seq = CASE WHEN lanes[width_bucket(t.lane, lanes)] = t.lane THEN coalesce(seqs[width_bucket(t.lane, lanes)], t.seq) ELSE t.seq END
    WHERE t.share = ANY (shares);
END $$;

-- name: plan_turns
-- Do the same as `plan_keyed_claims_1` when jobs wait for the turns of their tenants: the jobs of the tenants of a queue are
-- one more lane. It passes over jobs that another transaction has locked. So it is also called when another plan contained
-- only such jobs.
-- Sizes are checked here, because what is not delivered must not be charged.
-- Inputs: as for `plan_keyed_claims_1`; the session; its exchange and nonce; the levels of the requested lanes; the names whose limits are locked; the
--   maximum number of bytes of all deliveries (NULL: sizes are not checked)
-- Result: as of `plan_keyed_claims_1`; `turn_lanes` are the lanes of tenants among `lanes`. The jobs of tenants are leased.
-- Locks: the rows of `ready` that it plans or deletes. The caller has locked limits and floors.
-- A lane whose jobs were parked may end before it was read whole. It is then closed, and the next exchange continues there.
CREATE OR REPLACE FUNCTION {schema}.plan_turns_1(
    p_total int4, p_now int8, p_session int4, p_number int8, p_nonce bytea, p_ageing int8, p_ids int4[],
    p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[], p_low_water_marks int8[], p_queues text[], p_names text[], p_queue_levels int8[],
    p_locked text[], p_caps int4[], p_changing bool[], p_max_bytes int8,
    OUT closed bool[], OUT seqs int8[], OUT dues int8[], OUT lanes int4[], OUT main_lanes int4[],
    OUT key_starts int4[], OUT key_ends int4[], OUT key_seqs int8[], OUT key_numbers int8[], OUT units int8[], OUT spans int8[],
    OUT turn_lanes int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    max_parked CONSTANT int4 := 1000;  -- MAX_PARKED in core/keyed_limits.py
    keyed bool[] := {schema}.find_keyed_lanes_1(p_queues, p_names);
    chunks int4[];
    queue_available int4[];
    name_available int4[];
    queues text[];
    allowed text[];
    skipped int4[] := '{}';
    following record;
    turns {schema}.tenant_turn[] := '{}';
    turn_keys int8[] := '{}';
    turn {schema}.tenant_turn;
    best int4;
    best_key int8[];
    main refcursor;
    candidate record;
    has_candidate bool;
    job_seq int8;
    job_due int8;
    job_lane int4;
    job_main_lane int4;
    request_index int4;
    queue int4;
    name int4;
    taken int4 := 0;
    parked_count int4 := 0;
    passed record;
    bytes int8 := 0;
    own record;
    own_keys int4;
    first_key int4;
    key_names text[] := '{}';
    key_indexes int4[] := '{}';
    key_count int4 := 0;
    in_uses int4[] := '{}';
    spents int8[] := '{}';
    numbers int8[] := '{}';
    key_index int4;
    full_limit text;
    full_key text;
    opening int8;
BEGIN
    seqs := '{}';
    dues := '{}';
    lanes := '{}';
    main_lanes := '{}';
    key_starts := '{}';
    key_ends := '{}';
    key_seqs := '{}';
    key_numbers := '{}';
    units := '{}';
    spans := '{}';
    turn_lanes := '{}';
    SELECT array_agg(coalesce(c, p_total)) INTO queue_available FROM unnest(p_caps) c;
    SELECT array_agg(coalesce(limits.available, p_total) ORDER BY u.place) INTO name_available
    FROM unnest(p_names) WITH ORDINALITY AS u (name, place)
    CROSS JOIN LATERAL (SELECT {schema}.count_available_1(p_now, u.name) AS available) limits;
    SELECT array_agg(served.queue ORDER BY served.queue), array_agg(served.names ORDER BY served.queue) INTO queues, allowed
    FROM (
        SELECT u.queue, string_agg(u.name, E'\n') AS names FROM unnest(p_queues, p_names, name_available) AS u (queue, name, available)
        WHERE u.available > 0 AND (p_locked IS NULL OR u.name = ANY (p_locked))
            AND NOT EXISTS (
                SELECT FROM {schema}.paused_queue p WHERE p.queue = u.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
            )
        GROUP BY u.queue
    ) served;
    -- Some may be parked, or locked by others. Of those that return after a change, most may be parked again.
    chunks := array_fill(p_total + CASE WHEN p_changing IS NULL THEN 100 ELSE max_parked END,
        ARRAY[coalesce(cardinality(p_ids), 0)]);
    OPEN main FOR SELECT * FROM {schema}.merge_keyed_lanes_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels,
        p_low_water_marks, chunks, p_names, '{}');
    FETCH main INTO candidate;
    has_candidate := FOUND;
    FOR i IN 1..coalesce(cardinality(queues), 0) LOOP
        SELECT * INTO following FROM {schema}.find_next_turn_1(queues[i], string_to_array(allowed[i], E'\n'), skipped, NULL);
        skipped := following.skipped;
        turns[i] := following.turn;
        turn_keys := turn_keys || {schema}.rank_turn_1(p_now, p_ageing, turns[i], p_queue_levels[array_position(p_queues, queues[i])]);
    END LOOP;
    WHILE taken < p_total LOOP
        best := NULL;
        FOR i IN 1..coalesce(cardinality(queues), 0) LOOP
            IF (turns[i]).lane IS NOT NULL AND (best IS NULL OR turn_keys[4 * i - 3:4 * i] < best_key) THEN
                best := i;
                best_key := turn_keys[4 * i - 3:4 * i];
            END IF;
        END LOOP;
        IF has_candidate AND (best IS NULL OR candidate.worst < best_key) THEN
            PERFORM FROM {schema}.ready r
            WHERE r.lane = p_ids[candidate.lane_index] AND r.due = candidate.due AND r.seq = candidate.seq FOR UPDATE SKIP LOCKED;
            request_index := p_request_indexes[candidate.lane_index];
            IF NOT FOUND THEN  -- another transaction has locked it or taken it
                IF candidate.is_end AND parked_count > 0 THEN
                    closed[request_index] := true;
                END IF;
                FETCH main INTO candidate;
                has_candidate := FOUND;
                CONTINUE;
            END IF;
            best := NULL;
            job_seq := candidate.seq;
            job_due := candidate.due;
            job_lane := p_ids[candidate.lane_index];
            job_main_lane := p_main_lanes[candidate.lane_index];
        ELSIF best IS NOT NULL THEN
            turn := turns[best];
            job_seq := turn.seq;
            job_due := turn.due;
            job_lane := turn.lane;
            job_main_lane := turn.lane;
            SELECT u.place INTO request_index FROM unnest(p_queues, p_names) WITH ORDINALITY AS u (queue, name, place)
            WHERE u.queue = turn.queue AND u.name = turn.name;
        ELSE
            EXIT;
        END IF;
        queue := array_position(p_queues, p_queues[request_index]);
        name := array_position(p_names, p_names[request_index]);
        full_limit := NULL;
        own_keys := 0;
        first_key := key_count + 1;
        IF queue_available[queue] <= 0 OR name_available[name] <= 0 OR closed[request_index] IS TRUE THEN
            IF best IS NOT NULL THEN
                allowed[best] := CASE WHEN queue_available[queue] <= 0 THEN ''
                    ELSE array_to_string(array_remove(string_to_array(allowed[best], E'\n'), turn.name), E'\n') END;
            END IF;
        ELSE
            IF keyed[request_index] THEN
                FOR own IN
                    SELECT k.*, u.number, coalesce(u.in_use, 0) AS in_use, coalesce(u.spent_until, 0) AS spent_until
                    FROM {schema}.list_job_keys_1(p_names[request_index], job_seq) k
                    LEFT JOIN {schema}.limit_key u ON u.limit_name = k.limit_name AND u.key = k.key
                    ORDER BY k.limit_name
                LOOP
                    own_keys := own_keys + 1;
                    CONTINUE WHEN full_limit IS NOT NULL;
                    key_index := array_position(key_names, own.limit_name || E'\x1f' || own.key);
                    IF key_index IS NULL THEN
                        key_names := key_names || (own.limit_name || E'\x1f' || own.key);
                        in_uses := in_uses || own.in_use;
                        spents := spents || own.spent_until;
                        key_index := cardinality(key_names);
                        numbers[key_index] := own.number;
                    END IF;
                    IF own.concurrency <= in_uses[key_index] OR p_changing IS NOT NULL AND p_changing[request_index] AND {schema}.has_parked_before_1(
                        own.limit_name, own.key, p_queues[request_index], p_names[request_index], job_seq, job_due, job_main_lane)
                    THEN
                        full_limit := own.limit_name;
                        full_key := own.key;
                        opening := NULL;
                    ELSIF (own.burst - LEAST(own.cost, own.burst)) * own.unit_time < GREATEST(0, spents[key_index] - p_now) THEN
                        full_limit := own.limit_name;
                        full_key := own.key;
                        opening := spents[key_index] - (own.burst - LEAST(own.cost, own.burst)) * own.unit_time;
                    ELSE
                        IF numbers[key_index] IS NULL THEN
                            numbers[key_index] := {schema}.get_or_create_key_1(own.limit_name, own.key);
                        END IF;
                        key_count := key_count + 1;
                        key_indexes[key_count] := key_index;
                        key_seqs[key_count] := job_seq;
                        key_numbers[key_count] := numbers[key_index];
                        units[key_count] := own.cost * own.unit_time;
                        spans[key_count] := (own.burst - 1) * own.unit_time;
                    END IF;
                END LOOP;
            END IF;
            IF full_limit IS NULL THEN
                IF p_max_bytes IS NOT NULL THEN
                    SELECT bytes + {schema}.get_delivery_size_1(j.payload, j.options) INTO bytes
                    FROM {schema}.job j WHERE j.seq = job_seq;
                    EXIT WHEN bytes > p_max_bytes AND taken > 0;
                END IF;
                FOR i IN first_key..key_count LOOP
                    in_uses[key_indexes[i]] := in_uses[key_indexes[i]] + 1;
                    IF units[i] > 0 THEN
                        spents[key_indexes[i]] := GREATEST(spents[key_indexes[i]], p_now) + units[i];
                    END IF;
                END LOOP;
                seqs := seqs || job_seq;
                dues := dues || job_due;
                lanes := lanes || job_lane;
                main_lanes := main_lanes || job_main_lane;
                queue_available[queue] := queue_available[queue] - 1;
                name_available[name] := name_available[name] - 1;
                taken := taken + 1;
                IF key_count >= first_key THEN
                    key_starts[taken] := first_key;
                    key_ends[taken] := key_count;
                END IF;
                IF best IS NOT NULL THEN
                    PERFORM {schema}.lease_turn_1(p_now, p_session, p_number, p_nonce, turn, taken,
                        key_numbers[key_starts[taken]:key_ends[taken]]);
                    IF job_lane <> ALL (turn_lanes) THEN
                        turn_lanes := turn_lanes || job_lane;
                    END IF;
                END IF;
            ELSIF parked_count >= max_parked THEN
                key_count := first_key - 1;
                closed[request_index] := true;
            ELSE
                key_count := first_key - 1;
                parked_count := parked_count + {schema}.park_1(ARRAY[job_seq], ARRAY[job_due], ARRAY[job_lane],
                    ARRAY[job_main_lane], ARRAY[full_limit], ARRAY[full_key], ARRAY[opening]);
                IF own_keys > 1 THEN
                    passed := {schema}.pass_other_turns_1(
                        p_now, job_seq, job_main_lane, full_limit, max_parked - parked_count,
                        key_numbers[:key_count], units[:key_count]);
                    parked_count := parked_count + passed.moved;
                    IF passed.has_returned THEN
                        closed[request_index] := true;
                    END IF;
                END IF;
            END IF;
        END IF;
        IF best IS NOT NULL THEN
            SELECT * INTO following
            FROM {schema}.find_next_turn_1(queues[best], string_to_array(allowed[best], E'\n'), skipped, turn);
            skipped := following.skipped;
            turns[best] := following.turn;
            turn_keys[4 * best - 3:4 * best] := GREATEST(best_key,
                {schema}.rank_turn_1(p_now, p_ageing, turns[best], p_queue_levels[array_position(p_queues, queues[best])]));
        ELSE
            IF candidate.is_end AND parked_count > 0 THEN
                closed[request_index] := true;
            END IF;
            FETCH main INTO candidate;
            has_candidate := FOUND;
        END IF;
    END LOOP;
    CLOSE main;
    key_seqs := key_seqs[:key_count];
    key_numbers := key_numbers[:key_count];
    units := units[:key_count];
    spans := spans[:key_count];
END $$;

-- name: rank_turn
-- Return the place of the job whose turn is next among the heads of the lanes, as `merge_jobs_1` ranks them.
-- Inputs: the time; the ageing span; the row of `tenant_turn`; the level of the queue
-- Result: minus the level with the age, rank, due time and seq; zeros if there is no job
CREATE OR REPLACE FUNCTION {schema}.rank_turn_1(p_now int8, p_ageing int8, p_turn {schema}.tenant_turn, p_level int8) RETURNS int8[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_turn.lane IS NULL THEN '{0,0,0,0}' ELSE ARRAY[
        -p_level - CASE WHEN p_ageing > 0 AND p_now > p_turn.due THEN (p_now - p_turn.due) / p_ageing ELSE 0 END,
        p_turn.rank, p_turn.due, p_turn.seq
    ] END
$$;

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
-- Result: one row for each tenant, queue and rank; `ahead` is its virtual time beyond the floor
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
        ) AS running, s.virtual_time - coalesce(f.floor, 0)
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
        ) s LEFT JOIN {schema}.tenant_floor f ON f.queue = s.queue AND f.rank = s.rank
        ORDER BY s.queue, s.rank, s.virtual_time, s.tenant
    ) uses WHERE uses.waiting > 0 OR uses.running > 0 LIMIT p_limit
$$;

-- name: find_turn
-- Find where a waiting job stands in the turns of its queue.
-- Inputs: the id of the job; the maximum number of jobs before it to count
-- Result: tenant, its virtual time beyond the floor, how many other tenants are before it, how many jobs of its lane are; no
--   row if the job does not wait for a turn
CREATE OR REPLACE FUNCTION {schema}.find_turn_1(p_id bytea, p_most int4) RETURNS TABLE (
    tenant text, ahead int8, tenants_before int8, jobs_before int8
)
LANGUAGE sql STABLE ROWS 1 SET jit TO off AS $$
    SELECT a.tenant, t.virtual_time - coalesce(f.floor, 0), (
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
    LEFT JOIN {schema}.tenant_floor f ON f.queue = t.queue AND f.rank = t.rank
    WHERE j.id = p_id
$$;

-- name: forget_tenants
-- Forget tenants without waiting and leased jobs that are not ahead of the others, and queues and ranks without such jobs.
-- A call begins after the last share that the call before it read, or with the first.
-- Inputs: the maximum number of shares to read
-- Locks: advisory lock 7048; if it is not free, nothing is done. All floors, by queue and rank
CREATE OR REPLACE FUNCTION {schema}.forget_tenants_1(p_limit int4) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    last_read int4;
    shares int4[];
    idle {schema}.tenant_floor[];  -- of queues and ranks without waiting and leased jobs
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.tenant_floor) AND NOT EXISTS (SELECT FROM {schema}.tenant_turn)
        OR NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.forget_tenants_1', 7048))
    THEN
        RETURN;
    END IF;
    last_read := coalesce((SELECT c.last_read FROM {schema}.tenant_cursor c WHERE c.what = 'share'), -2147483648);
    PERFORM FROM {schema}.tenant_floor f ORDER BY f.queue, f.rank FOR UPDATE;
    shares := ARRAY(
        (SELECT s.share FROM {schema}.tenant_share s WHERE s.share > last_read ORDER BY s.share LIMIT p_limit)
        UNION
        (SELECT t.share FROM {schema}.tenant_turn t WHERE t.share > last_read ORDER BY t.share LIMIT p_limit)
        ORDER BY 1 LIMIT p_limit
    );
    PERFORM {schema}.remove_empty_turns_1(shares);
    idle := ARRAY(
        SELECT f FROM {schema}.tenant_floor f
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
            (SELECT f.floor FROM {schema}.tenant_floor f WHERE f.queue = s.queue AND f.rank = s.rank), 0
        ) OR EXISTS (SELECT FROM unnest(idle) i WHERE i.queue = s.queue AND i.rank = s.rank));
    PERFORM {schema}.move_tenant_cursor_1('share', shares[p_limit]);
    IF shares[p_limit] IS NULL THEN
        DELETE FROM {schema}.tenant_floor f USING unnest(idle) i WHERE f.queue = i.queue AND f.rank = i.rank
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
