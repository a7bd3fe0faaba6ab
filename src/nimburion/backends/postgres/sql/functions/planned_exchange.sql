-- The planned exchange: what `exchange_1` refuses because limits or tenants exist, or because a queue is capped.
--
-- 1. `begin_planned_exchange_1` settles and promotes. If one lane has jobs, and all their keys have room for all of them, it leases
--    them: nothing has to be decided, and the exchange takes one call. Else it reads candidates. The call is a transaction of its own, so no lock is held while the
--    plan is made.
-- 2. `nimburion.backends.planning` decides which jobs are leased and parked. It runs in the worker.
-- 3. `apply_plan_1` leases and parks what was planned. It first locks limits and share classes, and compares their state with
--    what the plan has read. If anything differs, or a planned job is gone, it changes nothing and returns `conflict`.
--
-- After a conflict, the worker runs both calls in one transaction that takes the locks first (`read_candidates_again_1`, or
-- `begin_planned_exchange_1` with `p_lock`). The server ends its connection if it is idle for 5 s.
-- The exchange is open (`exchange_log.is_open`) from the first call on. A repeat of its number closes it, so a second call that
-- arrives late leases nothing.
-- Locks: as `exchange_1`; then limits as in `limits.sql`, share classes as in `tenants.sql`, and the rows of the planned jobs.

-- name: begin_planned_exchange
-- Settle finished jobs, promote due jobs, and lease jobs that nothing restricts. If there are others, read what a plan needs.
-- Inputs: as for `exchange_1`
--   p_is_capped     whether the number of jobs of a queue is limited
--   p_most_jobs, p_most_turns
--                   how many jobs and turns of each lane to read at most
--   p_group_factor  a factor for the number of jobs of each turn
--   p_most_parked   how many jobs that are parked for each key to read at most
--   p_lock          whether to lock what the plan may change, too: share classes of tenants, and the rows of candidates.
--                   Then what follows from the end of members of flows is left: the worker calls `continue_flows_1` after the
--                   transaction.
-- Result: as of `exchange_1`. Further outcomes:
--   repeated        this was the last exchange; call `exchange_1`, which repeats it
--   plain           nothing restricts this exchange; call `exchange_1`. Nothing was changed.
--   open            a plan of the `candidates` has to be applied. Then the queues of the promoted jobs that it does not lease
--                   (`promoted_queues`) are to be notified, too.
CREATE OR REPLACE FUNCTION {schema}.begin_planned_exchange_1(
    p_now int8, p_session text, p_number int8,
    p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[],
    p_texts text[], p_fractions float8[],
    p_total int4, p_nonce bytea, p_queues text[], p_names text[], p_max_bytes int8, p_is_capped bool,
    p_most_jobs int4, p_most_turns int4, p_group_factor int4, p_most_parked int4, p_lock bool,
    p_low_water_lanes int4[], p_low_water_marks int8[], p_scheduled_low_water_mark int8
) RETURNS SETOF {schema}.planned_exchange_reply
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET enable_memoize TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    first_reading int8;
    now int8;
    session record;
    has_tenants bool;
    locked_names text[];
    settled record;
    is_changing bool;  -- whether jobs return after limits were changed
    lanes record;
    lane_index int4;  -- the only lane that has jobs, if nothing has to be planned for it
    lane_limits record;
    room int4;  -- in the limits that close this lane; NULL: there are none
    most int4 := p_total;  -- how many jobs to lease
    open record;  -- jobs of this lane for which all keys have room
    head_dues int8[];
    first_dues int8[];
    leased int4 := 0;
    candidates text;
    promoted_queues text[];
    reply {schema}.exchange_reply;
BEGIN
    -- Step 1: lock the session, and what the settlements and the lease change.
    first_reading := {schema}.begin_exchange_1(p_session);
    now := {schema}.get_write_time_1(p_now);
    session := {schema}.find_exchange_1(p_session, p_number);
    reply.outcome := CASE WHEN session.outcome <> 'ok' THEN session.outcome
        WHEN session.is_repeated THEN 'repeated'
        WHEN NOT p_is_capped AND NOT {schema}.is_restricted_1() THEN 'plain' END;
    IF reply.outcome IS NOT NULL THEN
        reply.last_number := session.last_number;
        RETURN QUERY SELECT (reply).*, CAST(NULL AS text), CAST(NULL AS text[]);
        RETURN;
    END IF;
    IF p_lock THEN
        PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    END IF;
    has_tenants := EXISTS (SELECT FROM {schema}.lane a WHERE a.id < 0);
    locked_names := {schema}.lock_affected_limits_1(
        now, session.number, p_seqs, p_queues, p_names, p_lock OR NOT has_tenants, p_lock);
    IF has_tenants THEN
        PERFORM {schema}.lock_share_classes_1(p_queues, session.number, p_seqs);
    END IF;

    -- Step 2: settle and promote, and return parked jobs.
    settled := {schema}.settle_and_promote_1(now, session.number, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
        p_texts, p_fractions, p_scheduled_low_water_mark, ARRAY(SELECT f.name FROM {schema}.used_feature f), has_tenants, p_lock);
    PERFORM {schema}.unpark_open_1(now, p_names);
    is_changing := EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key);
    IF is_changing THEN
        settled.to_notify := settled.to_notify || {schema}.unpark_changed_1(now);
    END IF;
    IF has_tenants THEN
        PERFORM {schema}.admit_turns_1(p_queues);  -- for jobs that were promoted or returned
    END IF;

    -- Step 3: lease the jobs of one lane if all their keys have room; else read candidates.
    lanes := {schema}.read_open_lanes_1(now, p_queues, p_names, NULL, p_low_water_lanes, p_low_water_marks, true);
    head_dues := lanes.head_dues;
    first_dues := array_remove(head_dues, NULL);
    IF cardinality(first_dues) = 1 AND p_total > 0 AND NOT (has_tenants OR p_is_capped OR is_changing)
        AND NOT {schema}.may_exceed_1(p_total, p_max_bytes)
    THEN
        lane_index := array_position(head_dues, first_dues[1]);
        IF lanes.names[lane_index] = ANY (locked_names) IS NOT TRUE THEN  -- its jobs came a moment ago
            lane_index := NULL;
        END IF;
    END IF;
    IF lane_index IS NOT NULL THEN
        lane_limits := {schema}.read_lane_limits_1(now, lanes.queues[lane_index], lanes.names[lane_index]);
        room := lane_limits.room;
        most := LEAST(p_total, room);
    END IF;
    open := {schema}.lock_open_jobs_1(
        now, most, lanes.ids[lane_index], lanes.low_water_marks[lane_index], lanes.names[lane_index]);
    IF open.ctids IS NOT NULL THEN
        IF open.numbers IS NOT NULL THEN
            PERFORM {schema}.take_uses_1(now, open.numbers, open.jobs, open.units);
        END IF;
        RETURN QUERY SELECT *, CAST(NULL AS text), CAST(NULL AS text[]) FROM {schema}.lease_jobs_1(
            now, session.number, p_number, p_nonce, lanes.main_lanes[lane_index], open.ctids, lane_limits.numbers, open.seqs,
            open.key_numbers, open.limits);
        leased := cardinality(open.ctids);
        PERFORM {schema}.take_lane_uses_1(now, lane_limits.numbers, lane_limits.units, leased);
        head_dues[lane_index] := {schema}.read_lane_head_1(lanes.ids[lane_index], lanes.low_water_marks[lane_index]);
    ELSIF most > 0 AND (has_tenants OR is_changing OR first_dues <> '{}') THEN
        candidates := {schema}.read_candidates_1(
            now, p_total, p_queues, p_names, p_max_bytes, p_most_jobs, p_most_turns, p_group_factor, p_most_parked, p_lock,
            p_low_water_lanes, p_low_water_marks);
    END IF;

    -- Step 4: record the exchange, and return the status row.
    reply := {schema}.finish_exchange_1(p_now, first_reading, now, session.number, session.oldest_xid, p_number, p_nonce, p_total,
        settled.results, settled.to_notify, settled.next_due, settled.is_cut, settled.promoted_lanes, candidates IS NOT NULL);
    reply.head_lanes := lanes.ids;
    reply.head_dues := head_dues;
    IF leased > 0 THEN
        reply.lanes := lanes.main_lanes[lane_index:lane_index];
        reply.queues := lanes.queues[lane_index:lane_index];
        reply.names := lanes.names[lane_index:lane_index];
        reply.ranks := lanes.ranks[lane_index:lane_index];
    END IF;
    IF candidates IS NULL THEN
        IF lane_index IS NULL AND (has_tenants OR first_dues <> '{}') THEN
            reply.waiting := {schema}.find_waiting_lanes_1(now, p_queues, p_names, p_low_water_lanes, p_low_water_marks);
        ELSIF leased < room IS NOT FALSE AND head_dues[lane_index] IS NOT NULL THEN
            reply.waiting := lanes.request_indexes[lane_index:lane_index];
        END IF;
        reply.next_due := LEAST(reply.next_due, {schema}.find_next_opening_1(now, p_queues, p_names));
    ELSIF settled.promoted_lanes IS NOT NULL THEN
        promoted_queues := {schema}.list_queues_of_left_jobs_1(settled.promoted_lanes, session.number, p_number);
    END IF;
    RETURN QUERY SELECT (reply).*, candidates, promoted_queues;
END $$;

-- name: lock_open_jobs
-- Lock the first jobs of a lane if all their keys have room for all of them: then nothing has to be planned.
-- Inputs: the time; the maximum number of jobs; the lane (NULL: none); its low-water mark; its name, whose limits are locked
-- Result:
--   ctids               the rows of the jobs in `ready`; NULL: a key has no room, or another transaction has locked the jobs
--   seqs, limits        if limits of the name have keys: the seqs in ascending order, and how many such limits there are. Then
--   key_numbers, numbers, jobs, units
--                       as from `count_open_keys_1`
-- Locks: the rows of the jobs; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.lock_open_jobs_1(
    p_now int8, p_total int4, p_lane int4, p_low_water_mark int8, p_name text, OUT ctids tid[], OUT seqs int8[], OUT limits int4,
    OUT key_numbers int8[], OUT numbers int8[], OUT jobs int4[], OUT units int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    rules record;
    used record;
BEGIN
    IF p_lane IS NULL OR p_total <= 0 THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.limit_rule k WHERE k.job_name = p_name AND NOT k.closes_lane) THEN
        ctids := nullif(ARRAY(
            SELECT r.ctid FROM {schema}.ready r WHERE r.lane = p_lane AND r.due >= p_low_water_mark
            ORDER BY r.due, r.seq LIMIT p_total FOR UPDATE SKIP LOCKED
        ), '{}');
        RETURN;
    END IF;
    SELECT array_agg(r.ctid), array_agg(r.seq) INTO ctids, seqs FROM (
        SELECT * FROM (
            SELECT r.ctid, r.seq FROM {schema}.ready r WHERE r.lane = p_lane AND r.due >= p_low_water_mark
            ORDER BY r.due, r.seq LIMIT p_total FOR UPDATE SKIP LOCKED
        ) r ORDER BY r.seq OFFSET 0
    ) r;
    IF seqs IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(k.limit_name) AS names, array_agg(k.concurrency) AS concurrencies, array_agg(k.interval) AS intervals,
        array_agg(k.burst) AS bursts, array_agg(k.cost) AS costs, CAST(count(*) AS int4) AS number
    INTO rules FROM (
        SELECT * FROM {schema}.limit_rule k WHERE k.job_name = p_name AND NOT k.closes_lane ORDER BY k.limit_name OFFSET 0
    ) k;
    used := {schema}.count_open_keys_1(p_now, seqs, rules.names, rules.concurrencies, rules.intervals, rules.bursts, rules.costs,
        EXISTS (SELECT FROM {schema}.limit_change c WHERE c.for_key));
    limits := rules.number;
    ctids := CASE WHEN used.has_room THEN ctids END;
    key_numbers := used.key_numbers;
    numbers := used.numbers;
    jobs := used.jobs;
    units := used.units;
END $$;

-- name: count_open_keys
-- Count how often the jobs use each key, and test whether all keys have room for them.
-- Inputs: the time; the jobs in the order of their seqs; the limits of their name for which jobs are parked in their order, as
--   columns of `limit_rule`; whether the limit of any key was changed
-- Result:
--   has_room      whether all keys have room, and no job is parked for any of them; else the rest is not to be used
--   key_numbers   the numbers of the keys, one for each job and limit, in their order; NULL: the job has no key for the limit
--   numbers, jobs, units
--                 the keys in the order of their numbers: how many jobs use each, and how far they move `spent_until`
CREATE OR REPLACE FUNCTION {schema}.count_open_keys_1(
    p_now int8, p_seqs int8[], p_limits text[], p_concurrencies int4[], p_intervals int8[], p_bursts int8[], p_costs int8[],
    p_any_changed bool, OUT has_room bool, OUT key_numbers int8[], OUT numbers int8[], OUT jobs int4[], OUT units int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    any_parked bool := EXISTS (SELECT FROM {schema}.parked);
    new_limits text[];
    new_keys text[];
BEGIN
    LOOP
        WITH job_key AS MATERIALIZED (
            SELECT c.seq, l.nth, u.number, u.in_use, u.spent_until, coalesce(x.concurrency, l.concurrency) AS concurrency,
                coalesce(x.burst, l.burst) AS burst, coalesce(x.interval, l.interval) AS unit_time,
                coalesce(CAST(c.options ->> 'cost' AS int8), l.cost) AS cost, l.limit_name, k.key
            FROM (  -- OFFSET 0 keeps the options from being read again for each limit
                SELECT j.seq, CAST({schema}.replace_nul_1(j.options) AS jsonb) AS options
                FROM {schema}.job j WHERE j.seq = ANY (p_seqs) OFFSET 0
            ) c
            CROSS JOIN unnest(p_limits, p_concurrencies, p_intervals, p_bursts, p_costs)
                WITH ORDINALITY AS l (limit_name, concurrency, interval, burst, cost, nth)
            CROSS JOIN LATERAL (SELECT c.options -> 'limit_keys' ->> l.limit_name AS key OFFSET 0) k
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.limit_use u WHERE u.key = k.key AND u.limit_name = l.limit_name OFFSET 0
            ) u ON true
            LEFT JOIN LATERAL (
                SELECT * FROM {schema}.limit_change x
                WHERE p_any_changed AND x.name = l.limit_name AND x.for_key AND x.key = k.key OFFSET 0
            ) x ON true
        ), key_use AS (  -- the costs of jobs may differ: assume the worst
            SELECT k.number, CAST(count(*) AS int4) AS jobs, coalesce(CAST(sum(k.cost * k.unit_time) AS int8), 0) AS units,
                (min(k.concurrency) >= coalesce(min(k.in_use), 0) + count(*)) IS NOT FALSE
                AND (min((k.burst - LEAST(k.cost, k.burst)) * k.unit_time) >= GREATEST(0, min(k.spent_until) - p_now)
                    + sum(k.cost * k.unit_time) - min(k.cost * k.unit_time)) IS NOT FALSE
                AND NOT (any_parked AND EXISTS (
                    SELECT FROM {schema}.parked p WHERE p.limit_name = min(k.limit_name) AND p.key = min(k.key) OFFSET 0
                )) AS has_room
            FROM job_key k WHERE k.key IS NOT NULL
            GROUP BY k.number, CASE WHEN k.number IS NULL THEN k.limit_name END, CASE WHEN k.number IS NULL THEN k.key END
        )
        SELECT n.key_numbers, n.new_limits, n.new_keys, u.has_room, u.numbers, u.jobs, u.units
        INTO key_numbers, new_limits, new_keys, has_room, numbers, jobs, units
        FROM (
            SELECT array_agg(k.number) AS key_numbers,
                array_agg(k.limit_name) FILTER (WHERE k.number IS NULL AND k.key IS NOT NULL) AS new_limits,
                array_agg(k.key) FILTER (WHERE k.number IS NULL AND k.key IS NOT NULL) AS new_keys
            FROM (SELECT * FROM job_key ORDER BY seq, nth OFFSET 0) k
        ) n, (
            SELECT coalesce(bool_and(u.has_room), true) AS has_room, array_agg(u.number) AS numbers, array_agg(u.jobs) AS jobs,
                array_agg(u.units) AS units
            FROM (SELECT * FROM key_use ORDER BY number OFFSET 0) u
        ) u;
        EXIT WHEN new_limits IS NULL OR NOT has_room;
        INSERT INTO {schema}.limit_use (limit_name, key, in_use, spent_until)
        SELECT DISTINCT n.limit_name, n.key, 0, 0 FROM unnest(new_limits, new_keys) AS n (limit_name, key) ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

-- name: read_candidates
-- Read what a plan considers (`Candidates` in candidates.py).
-- Inputs: as for `begin_planned_exchange_1`
-- Locks: with `p_lock`, the rows of the jobs; rows that another transaction has locked are skipped, however many there are
-- Result: a JSON object of lists; NULL: no job can be leased. For jobs, turns, groups, shares and keys it has one list for each column
--     open        the indexes of the requested lanes that are served
--     changing    those to which parked jobs still return
--     rules       limits of the job names: job name, limit, concurrency, interval, burst, cost; in_use and spent_until if the limit
--                 closes lanes
--     changes     changed keys: limit, key, concurrency, interval, burst
--     jobs        jobs without a tenant, in the order of their lanes: requested lane, rank, due, seq, lane, main lane
--     turns       requested lane, rank, virtual time, lane and share, in the order of the turns
--     groups      the jobs of these lanes: lane, due, seq
--     group_size  how many of them were read at most of each lane
--     shares      share, virtual time (NULL: no row), mean run time, unmeasured, weight
--     classes     share classes: queue, rank, minimum virtual time
--     parked      limit, key, requested lane, rank, due, seq, main lane, share (NULL: no tenant)
--     keys        of the jobs above: seq, requested lane, limit, key, cost (NULL: none of its own), in_use, spent_until (NULL: not in
--                 use), opens_at, has_parked
--     version     of the limits by key, as from `get_limits_version_1`
--     sizes       of the jobs above, if they may not fit into the reply: seq, bytes
CREATE OR REPLACE FUNCTION {schema}.read_candidates_1(
    p_now int8, p_total int4, p_queues text[], p_names text[], p_max_bytes int8,
    p_most_jobs int4, p_most_turns int4, p_group_factor int4, p_most_parked int4, p_lock bool,
    p_low_water_lanes int4[], p_low_water_marks int8[]
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    lanes record;
    changing bool[] := {schema}.find_changing_1(p_queues, p_names);
    open int4[];
    jobs record;
    turns record;
    groups record;
    group_size int4;
    shares int4[];
    parked record;
    parked_list json;
    keyed bool[];
    seqs int8[];
    places int4[];
BEGIN
    lanes := {schema}.read_open_lanes_1(p_now, p_queues, p_names, NULL, p_low_water_lanes, p_low_water_marks, true);
    open := ARRAY(
        SELECT CAST(r.place AS int4) FROM unnest(p_queues) WITH ORDINALITY AS r (queue, place)
        WHERE NOT coalesce(changing[r.place], false) AND NOT {schema}.is_paused_1(p_now, r.queue) ORDER BY r.place
    );
    SELECT array_agg(j.place) AS places, array_agg(j.rank) AS ranks, array_agg(j.due) AS dues, array_agg(j.seq) AS seqs,
        array_agg(j.lane) AS lanes, array_agg(j.main_lane) AS main_lanes
    INTO jobs FROM (
        SELECT l.place, l.rank, r.due, r.seq, l.lane, l.main_lane,
            row_number() OVER (PARTITION BY l.place ORDER BY l.rank, r.due, r.seq) AS nth
        FROM unnest(lanes.ids, lanes.main_lanes, lanes.request_indexes, lanes.ranks, lanes.low_water_marks, lanes.head_dues)
            AS l (lane, main_lane, place, rank, low_water_mark, head),
        LATERAL (
            (SELECT r.due, r.seq FROM {schema}.ready r WHERE NOT p_lock AND r.lane = l.lane AND r.due >= l.low_water_mark
            ORDER BY r.due, r.seq LIMIT p_most_jobs)
            UNION ALL
            SELECT * FROM (  -- UNION does not allow FOR UPDATE itself
                SELECT r.due, r.seq FROM {schema}.ready r WHERE p_lock AND r.lane = l.lane AND r.due >= l.low_water_mark
                ORDER BY r.due, r.seq LIMIT p_most_jobs FOR UPDATE SKIP LOCKED
            ) r
        ) r
        WHERE l.head IS NOT NULL AND l.place = ANY (open)
        ORDER BY l.place, nth
    ) j WHERE j.nth <= p_most_jobs;
    turns := {schema}.read_turns_1(p_queues, p_names, open, p_most_turns);
    IF jobs.seqs IS NULL AND turns.lanes IS NULL AND changing IS NULL THEN
        RETURN NULL;
    END IF;
    group_size := CASE WHEN cardinality(turns.lanes) > p_total THEN 1 ELSE 4 + p_total / cardinality(turns.lanes) END * p_group_factor;
    groups := {schema}.read_groups_1(turns.lanes, turns.places, group_size, p_lock);
    shares := turns.shares;
    seqs := jobs.seqs || groups.seqs;
    places := jobs.places || groups.places;
    keyed := {schema}.find_keyed_lanes_1(p_queues, p_names);
    IF p_most_parked > 0 THEN
        parked := {schema}.read_parked_1(p_queues, p_names, keyed, seqs, places, p_most_parked, p_lock);
        seqs := seqs || parked.seqs;
        places := places || parked.places;
        shares := shares || parked.shares;
        parked_list := parked.list;
    END IF;
    RETURN json_build_object(
        'open', open,
        'changing', ARRAY(SELECT g FROM generate_subscripts(changing, 1) g WHERE changing[g]),
        'rules', (
            SELECT json_agg(json_build_array(
                r.job_name, r.limit_name, r.concurrency, r.interval, r.burst, r.cost, u.in_use, u.spent_until))
            FROM {schema}.limit_rule r
            LEFT JOIN {schema}.limit_use u ON r.closes_lane AND u.key = '' AND u.limit_name = r.limit_name
            WHERE r.job_name = ANY (p_names)
        ),
        'changes', CASE WHEN true = ANY (keyed) THEN (
            SELECT json_agg(json_build_array(c.name, c.key, c.concurrency, c.interval, c.burst))
            FROM {schema}.limit_change c WHERE c.for_key
        ) END,
        'jobs', json_build_array(jobs.places, jobs.ranks, jobs.dues, jobs.seqs, jobs.lanes, jobs.main_lanes),
        'turns', json_build_array(turns.places, turns.ranks, turns.times, turns.lanes, turns.shares),
        'groups', json_build_array(groups.lanes, groups.dues, groups.seqs),
        'group_size', group_size,
        'shares', CASE WHEN shares IS NOT NULL THEN {schema}.list_shares_1(shares) END,
        'classes', CASE WHEN shares IS NOT NULL THEN (
            SELECT json_agg(json_build_array(f.queue, f.rank, f.min_virtual_time))
            FROM {schema}.share_class f WHERE f.queue = ANY (p_queues)
        ) END,
        'parked', parked_list,
        'keys', CASE WHEN true = ANY (keyed) THEN {schema}.list_candidate_keys_1(p_queues, p_names, keyed, seqs, places) END,
        'version', {schema}.get_limits_version_1(p_names),
        'sizes', CASE WHEN {schema}.may_exceed_1(p_total, p_max_bytes) THEN (
            SELECT json_agg(json_build_array(j.seq, {schema}.get_delivery_size_1(j.payload, j.options)))
            FROM {schema}.job j WHERE j.seq = ANY (seqs)
        ) END
    );
END $$;

-- name: read_turns
-- Read the turns of the tenants of each requested lane, in their order.
-- Inputs: queues and names of the requested lanes; the indexes of those that are served; the maximum number of turns of each
-- Result: arrays with one element for each turn (NULL: there are none): requested lane, rank, virtual time, lane, share
CREATE OR REPLACE FUNCTION {schema}.read_turns_1(
    p_queues text[], p_names text[], p_open int4[], p_most int4,
    OUT places int4[], OUT ranks int2[], OUT times int8[], OUT lanes int4[], OUT shares int4[]
) LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.tenant_turn) THEN
        RETURN;
    END IF;
    SELECT array_agg(t.place), array_agg(t.rank), array_agg(t.virtual_time), array_agg(t.lane), array_agg(t.share)
    INTO places, ranks, times, lanes, shares FROM (
        SELECT o.place, t.* FROM unnest(p_open) AS o (place), LATERAL (
            SELECT t.rank, t.virtual_time, t.lane, t.share FROM {schema}.tenant_turn t
            WHERE t.queue = p_queues[o.place] AND t.name = p_names[o.place] AND t.arrival = 0
            ORDER BY t.rank, t.virtual_time, t.due, t.seq LIMIT p_most
        ) t
    ) t;
END $$;

-- name: read_groups
-- Read the first jobs of lanes of tenants.
-- Inputs: the lanes; the requested lane of each; the maximum number of jobs of each; whether to lock their rows
-- Result: arrays with one element for each job: lane, due time, seq, requested lane
CREATE OR REPLACE FUNCTION {schema}.read_groups_1(
    p_lanes int4[], p_places int4[], p_most int4, p_lock bool,
    OUT lanes int4[], OUT dues int8[], OUT seqs int8[], OUT places int4[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(l.lane), array_agg(r.due), array_agg(r.seq), array_agg(l.place) INTO lanes, dues, seqs, places
    FROM unnest(p_lanes, p_places) AS l (lane, place), LATERAL (
        (SELECT r.due, r.seq FROM {schema}.ready r WHERE NOT p_lock AND r.lane = l.lane ORDER BY r.due, r.seq LIMIT p_most)
        UNION ALL
        SELECT * FROM (
            SELECT r.due, r.seq FROM {schema}.ready r WHERE p_lock AND r.lane = l.lane
            ORDER BY r.due, r.seq LIMIT p_most FOR UPDATE SKIP LOCKED
        ) r
    ) r;
END $$;

-- name: list_shares
-- List shares of tenants.
-- Inputs: shares
-- Result: share, virtual time (NULL: no row), mean run time, unmeasured and weight, as JSON
CREATE OR REPLACE FUNCTION {schema}.list_shares_1(p_shares int4[]) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    has_weights bool := EXISTS (SELECT FROM {schema}.tenant_weight);
BEGIN
    RETURN (
        SELECT json_build_array(array_agg(n.share), array_agg(s.virtual_time), array_agg(coalesce(s.mean_run_time, 0)),
            array_agg(coalesce(s.unmeasured, 0)), array_agg(coalesce(CASE WHEN has_weights THEN (
                SELECT w.units FROM {schema}.lane a JOIN {schema}.tenant_weight w ON w.tenant = a.tenant WHERE a.id = n.share
            ) END, 100)))
        FROM (SELECT DISTINCT u.share FROM unnest(p_shares) AS u (share)) n
        LEFT JOIN LATERAL (SELECT * FROM {schema}.tenant_share s WHERE s.share = n.share OFFSET 0) s ON true
    );
END $$;

-- name: list_candidate_keys
-- List the keys of jobs for which their names have limits, with the use of each.
-- Inputs: queues and names of the requested lanes; whether each has limits by key; seqs, and the requested lane of each
-- Result: see `read_candidates_1`
CREATE OR REPLACE FUNCTION {schema}.list_candidate_keys_1(
    p_queues text[], p_names text[], p_keyed bool[], p_seqs int8[], p_places int4[]
) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    any_parked bool := EXISTS (SELECT FROM {schema}.parked);
BEGIN
    RETURN (
        SELECT json_build_array(array_agg(k.seq), array_agg(k.place), array_agg(k.limit_name), array_agg(k.key), array_agg(k.cost),
            array_agg(u.in_use), array_agg(u.spent_until), array_agg(u.opens_at), array_agg(any_parked AND EXISTS (
                SELECT FROM {schema}.parked p WHERE p.limit_name = k.limit_name AND p.key = k.key OFFSET 0
            )))
        FROM {schema}.read_candidate_keys_1(p_queues, p_names, p_keyed, p_seqs, p_places) k
        LEFT JOIN LATERAL (
            SELECT * FROM {schema}.limit_use u WHERE u.key = k.key AND u.limit_name = k.limit_name OFFSET 0
        ) u ON true
    );
END $$;

-- name: read_candidate_keys
-- Read the keys of jobs for which they may be parked.
-- Inputs: as for `list_candidate_keys_1`
-- Result: one row for each job and limit; `cost` is that of the job (NULL: it has none)
CREATE OR REPLACE FUNCTION {schema}.read_candidate_keys_1(
    p_queues text[], p_names text[], p_keyed bool[], p_seqs int8[], p_places int4[]
) RETURNS TABLE (seq int8, place int4, limit_name text, key text, cost int8)
LANGUAGE sql STABLE AS $$
    SELECT c.seq, c.place, l.limit_name, k.key, CAST(c.options ->> 'cost' AS int8)
    FROM (  -- OFFSET 0 keeps the options from being read again for each limit
        SELECT u.seq, u.place, CAST({schema}.replace_nul_1(j.options) AS jsonb) AS options
        FROM unnest(p_seqs, p_places) AS u (seq, place), LATERAL (
            SELECT j.options FROM {schema}.job j WHERE j.seq = u.seq OFFSET 0
        ) j
        WHERE p_keyed[u.place] OFFSET 0
    ) c
    CROSS JOIN LATERAL (
        SELECT l.limit_name FROM {schema}.limit_rule l
        WHERE l.job_name = p_names[c.place] AND NOT l.closes_lane ORDER BY l.limit_name
    ) l
    CROSS JOIN LATERAL (SELECT c.options -> 'limit_keys' ->> l.limit_name AS key OFFSET 0) k
    WHERE k.key IS NOT NULL
$$;

-- name: read_parked
-- Read the first jobs that are parked for the keys of jobs, of the same requested lanes.
-- Inputs: as for `list_candidate_keys_1`; the maximum number of jobs of each key and lane; whether to lock their
--   rows
-- Result: the jobs as JSON; their seqs, the requested lane and the share of each
CREATE OR REPLACE FUNCTION {schema}.read_parked_1(
    p_queues text[], p_names text[], p_keyed bool[], p_seqs int8[], p_places int4[], p_most int4, p_lock bool,
    OUT list json, OUT seqs int8[], OUT places int4[], OUT shares int4[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT json_agg(json_build_array(p.limit_name, p.key, k.place, p.rank, p.due, p.seq, p.lane, p.share)), array_agg(p.seq),
        array_agg(k.place), array_agg(p.share) FILTER (WHERE p.share IS NOT NULL)
    INTO list, seqs, places, shares
    FROM (
        SELECT DISTINCT k.limit_name, k.key, k.place
        FROM {schema}.read_candidate_keys_1(p_queues, p_names, p_keyed, p_seqs, p_places) k
    ) k CROSS JOIN LATERAL (
        SELECT p.*, CASE WHEN p.lane < 0 THEN (SELECT a.share FROM {schema}.lane a WHERE a.id = p.lane) END AS share
        FROM (
            (SELECT * FROM {schema}.parked p
            WHERE NOT p_lock AND p.limit_name = k.limit_name AND p.key = k.key
                AND p.queue = p_queues[k.place] AND p.name = p_names[k.place]
            ORDER BY p.rank, p.due, p.seq LIMIT p_most)
            UNION ALL
            SELECT * FROM (
                SELECT * FROM {schema}.parked p
                WHERE p_lock AND p.limit_name = k.limit_name AND p.key = k.key
                    AND p.queue = p_queues[k.place] AND p.name = p_names[k.place]
                ORDER BY p.rank, p.due, p.seq LIMIT p_most FOR UPDATE SKIP LOCKED
            ) p
        ) p
    ) p;
END $$;

-- name: read_candidates_again
-- Read the candidates of an open exchange again, because a plan needs more of them or has met a conflict.
-- Inputs: as for `begin_planned_exchange_1`; whether to take the locks, or this transaction holds them already
-- Result: the time, and the candidates. NULL: no job can be leased, and the others are as in the reply of `exchange_1`; `next_due` is
--   only when a limit opens.
CREATE OR REPLACE FUNCTION {schema}.read_candidates_again_1(
    p_now int8, p_session text, p_total int4, p_queues text[], p_names text[], p_max_bytes int8,
    p_most_jobs int4, p_most_turns int4, p_group_factor int4, p_most_parked int4, p_lock bool, p_is_locked bool, p_low_water_lanes int4[], p_low_water_marks int8[],
    OUT now int8, OUT candidates text, OUT waiting int4[], OUT next_due int8
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET enable_memoize TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
BEGIN
    now := {schema}.get_read_time_1(p_now);
    IF p_lock THEN
        PERFORM {schema}.begin_exchange_1(p_session);
        PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
        PERFORM {schema}.lock_affected_limits_1(now, NULL, NULL, p_queues, p_names, true, true);
        PERFORM {schema}.lock_share_classes_1(p_queues, NULL, NULL);
    END IF;
    candidates := {schema}.read_candidates_1(
        now, p_total, p_queues, p_names, p_max_bytes, p_most_jobs, p_most_turns, p_group_factor, p_most_parked,
        p_lock OR p_is_locked, p_low_water_lanes, p_low_water_marks);
    IF candidates IS NULL THEN
        waiting := {schema}.find_waiting_lanes_1(now, p_queues, p_names, p_low_water_lanes, p_low_water_marks);
        next_due := {schema}.find_next_opening_1(now, p_queues, p_names);
    END IF;
END $$;

-- name: apply_plan
-- Lease, park and return the jobs of a plan, and store what it changes.
-- Inputs:
--   p_now, p_session, p_number, p_nonce
--                           the time of the plan; the session; its exchange and nonce
--   p_seqs, p_dues, p_lanes, p_main_lanes
--                           the jobs to lease, in the order of the reply, then those to park. The lane of a job that is parked
--                           already is NULL. Without main lanes, they are the lanes.
--   p_leased                how many of them are leased
--   p_key_ends, p_keys      for each leased job where its keys end in `p_keys`: places in the arrays of the uses. NULL: no job
--                           has a key
--   p_shares, p_charges     for each leased job the share of its tenant and the charge. NULL: no job has a tenant
--   p_park_keys             for each parked job its key: a place in the arrays of the uses
--   p_returned              the parked jobs that return to their lanes
--   p_limits, p_key_names   the uses: limits and keys,
--   p_in_use_before, p_spent_before, p_opens_before
--                           what the plan has read of them (`limit_use`),
--   p_in_use, p_spent, p_opens
--                           and what they are after it
--   p_version               the limits by key that the plan has read (`get_limits_version_1`)
--   p_charged, p_times_before, p_times, p_unmeasured
--                           the shares that were charged: their virtual times before (NULL: no row) and after; jobs that were
--                           reserved before the first run time
--   p_class_queues, p_class_ranks, p_minimums_before, p_minimums
--                           the share classes of their queues and ranks, before and after
--   p_waiting               the requested lanes that still have jobs; NULL: the plan does not know
--   p_queues, p_names, p_low_water_lanes, p_low_water_marks
--                           as for `exchange_1`
-- Result: as of `exchange_1`, but in any order; `next_due` is only when a limit opens. Further outcomes, with which nothing was changed:
--   closed        the exchange is not open any more
--   conflict      the plan does not apply any more
-- If no key and no tenant is concerned, planned jobs that are gone or locked are left out, unless all of them are.
-- Locks: the limits of the planned jobs; the share classes of their tenants; the rows of the jobs
CREATE OR REPLACE FUNCTION {schema}.apply_plan_1(
    p_now int8, p_session text, p_number int8, p_nonce bytea,
    p_seqs int8[], p_dues int8[], p_lanes int4[], p_main_lanes int4[], p_leased int4, p_key_ends int4[], p_keys int4[],
    p_shares int4[], p_charges int8[], p_park_keys int4[], p_returned int8[],
    p_limits text[], p_key_names text[], p_in_use_before int4[], p_spent_before int8[], p_opens_before int8[],
    p_in_use int4[], p_spent int8[], p_opens int8[], p_version int8,
    p_charged int4[], p_times_before int8[], p_times int8[], p_unmeasured int4[],
    p_class_queues text[], p_class_ranks int2[], p_minimums_before int8[], p_minimums int8[], p_waiting int4[],
    p_queues text[], p_names text[], p_low_water_lanes int4[], p_low_water_marks int8[]
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET enable_memoize TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    session record;
    closes_lanes bool;
    closing record;  -- the limits that close the lanes
    numbers int8[];
    key_numbers int8[];
    found record;
    leased record;
    reply {schema}.exchange_reply;
BEGIN
    -- Step 1: lock the session, and what the plan has read.
    p_main_lanes := coalesce(p_main_lanes, p_lanes);
    PERFORM {schema}.begin_exchange_1(p_session);
    session := {schema}.find_exchange_1(p_session, p_number);
    reply.now := p_now;
    IF session.outcome <> 'ok' OR NOT session.is_open THEN
        reply.outcome := 'closed';
        RETURN NEXT reply;
        RETURN;
    END IF;
    closes_lanes := {schema}.lock_planned_limits_1(p_main_lanes, p_leased, p_limits);

    -- Step 2: compare, and lock the jobs.
    IF p_limits IS NOT NULL THEN
        numbers := {schema}.match_uses_1(p_limits, p_key_names, p_in_use_before, p_spent_before, p_opens_before);
        IF numbers IS NULL THEN
            reply.outcome := 'conflict';
        END IF;
    END IF;
    IF {schema}.get_limits_version_1(p_names) IS DISTINCT FROM p_version
        OR {schema}.is_any_paused_1(p_now, p_main_lanes[:p_leased])
        OR NOT {schema}.match_shares_1(p_charged, p_times_before, p_class_queues, p_class_ranks, p_minimums_before)
    THEN
        reply.outcome := 'conflict';
    END IF;
    closing := {schema}.read_planned_lane_limits_1(p_now, CASE WHEN closes_lanes THEN p_main_lanes[:p_leased] END);
    IF NOT closing.has_room THEN
        reply.outcome := 'conflict';
    END IF;
    IF reply.outcome IS NULL THEN
        found := {schema}.lock_planned_jobs_1(p_seqs, p_dues, p_lanes, p_returned);
        IF found.missing <> '{}' AND (p_limits IS NOT NULL OR p_charged IS NOT NULL OR coalesce(found.places, '{}') = '{}') THEN
            reply.outcome := 'conflict';
        END IF;
    END IF;
    IF reply.outcome IS NOT NULL THEN
        RETURN NEXT reply;
        RETURN;
    END IF;

    -- Step 3: lease and park.
    IF p_limits IS NOT NULL THEN
        numbers := {schema}.write_uses_1(numbers, p_limits, p_key_names, p_in_use, p_spent, p_opens);
        key_numbers := ARRAY(SELECT numbers[u.at] FROM unnest(p_keys) WITH ORDINALITY AS u (at, nth) ORDER BY u.nth);
    END IF;
    WITH taken AS (
        DELETE FROM {schema}.ready r USING (
            SELECT * FROM unnest(found.ctids, found.places) AS u (ctid, place) OFFSET 0
        ) u WHERE r.ctid = u.ctid
        RETURNING r.attempt_status, u.place
    ), unparked AS (
        DELETE FROM {schema}.parked p USING (
            SELECT * FROM unnest(p_seqs[:p_leased], p_lanes[:p_leased]) WITH ORDINALITY AS u (seq, lane, place) OFFSET 0
        ) u WHERE u.lane IS NULL AND p.seq = u.seq
        RETURNING p.attempt_status, CAST(u.place AS int4)
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence, failures, lost,
            attempt_status, extra_flags, nonce, settled_token, share, charge, key_numbers)
        SELECT p_seqs[t.place], p_dues[t.place], p_now, p_number, session.number, p_main_lanes[t.place], t.place,
            coalesce((t.attempts).fence, 0) + 1, coalesce((t.attempts).failures, 0), coalesce((t.attempts).lost, 0),
            t.attempt_status, coalesce((t.attempts).extra_flags, 0::int2), p_nonce, (t.attempts).settled_token,
            p_shares[t.place], p_charges[t.place],
            nullif(array_remove(ARRAY[closing.job_numbers[t.limited], closing.queue_numbers[t.limited]], NULL)
                || key_numbers[coalesce(p_key_ends[t.place - 1], 0) + 1:p_key_ends[t.place]], '{}')
        FROM (
            SELECT t.*, array_position(closing.lanes, p_main_lanes[t.place]) AS limited, CASE WHEN t.attempt_status > 0 THEN {schema}.get_attempt_state_1(p_seqs[t.place]) END AS attempts
            FROM (SELECT * FROM taken UNION ALL SELECT * FROM unparked) t WHERE t.place <= p_leased OFFSET 0
        ) t
        RETURNING attempt_status, lane
    ), parked AS (
        INSERT INTO {schema}.parked (limit_name, key, queue, name, rank, due, seq, lane, attempt_status)
        SELECT p_limits[p_park_keys[t.place - p_leased]], p_key_names[p_park_keys[t.place - p_leased]], a.queue, a.name, a.rank,
            p_dues[t.place], p_seqs[t.place], a.id, t.attempt_status
        FROM taken t, LATERAL (SELECT * FROM {schema}.lane a WHERE a.id = p_main_lanes[t.place] OFFSET 0) a
        WHERE t.place > p_leased
    )
    SELECT bool_or(l.attempt_status > 0) AS any_attempted, array_agg(l.lane) AS lanes INTO leased FROM leased l;
    IF cardinality(p_seqs) > p_leased THEN  -- jobs that were parked for another key
        UPDATE {schema}.parked p SET limit_name = p_limits[u.at], key = p_key_names[u.at]
        FROM unnest(p_seqs[p_leased + 1:], p_lanes[p_leased + 1:], p_park_keys) AS u (seq, lane, at)
        WHERE u.lane IS NULL AND p.seq = u.seq;
    END IF;
    IF closes_lanes THEN
        PERFORM {schema}.count_leased_in_lane_limits_1(p_now, leased.lanes);
    END IF;
    PERFORM {schema}.charge_shares_1(p_charged, p_times, p_unmeasured, p_class_queues, p_class_ranks, p_minimums);
    PERFORM {schema}.move_turns_1(p_main_lanes);
    IF p_returned IS NOT NULL THEN
        PERFORM {schema}.unpark_seqs_1(p_now, p_returned);
    END IF;

    -- Step 4: return the jobs and the status row.
    IF leased.any_attempted OR found.missing <> '{}' THEN
        RETURN QUERY SELECT * FROM {schema}.repeat_exchange_1(session.number, p_number);
    ELSE
        RETURN QUERY
        SELECT CAST(NULL AS int4[]), array_agg(j.seq), array_agg(j.due), array_agg(j.created_at), array_agg(j.lane),
            CAST(NULL AS int4[]), CAST(NULL AS int4[]), CAST(NULL AS int4[]), array_agg(j.id), array_agg(j.options),
            array_agg(j.payload), CAST(NULL AS text[]), (CAST(NULL AS {schema}.exchange_status)).*
        FROM {schema}.job j WHERE j.seq = ANY (p_seqs[:p_leased]) HAVING count(*) > 0;
    END IF;
    SELECT array_agg(a.id), array_agg(a.queue), array_agg(a.name), array_agg(a.rank)
    INTO reply.lanes, reply.queues, reply.names, reply.ranks
    FROM {schema}.lane a WHERE a.id = ANY (ARRAY(SELECT DISTINCT unnest(p_main_lanes[:p_leased])));
    reply.outcome := 'ok';
    reply.nonce := p_nonce;
    reply.next_due := {schema}.find_next_opening_1(p_now, p_queues, p_names);
    reply.waiting := coalesce(p_waiting,
        {schema}.find_waiting_lanes_1(p_now, p_queues, p_names, p_low_water_lanes, p_low_water_marks));
    RETURN NEXT reply;
END $$;

-- name: lock_planned_limits
-- Lock the limits and share classes of a plan, in the order of all locks.
-- Inputs: the main lanes of the jobs to lease, then those of the jobs to park; how many are leased; the limits for which a job
--   is parked
-- Result: whether limits close the lanes of the leased jobs
CREATE OR REPLACE FUNCTION {schema}.lock_planned_limits_1(p_main_lanes int4[], p_leased int4, p_limits text[]) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    closing text[] := '{}';  -- limits that close the lanes
    queues text[];  -- share classes
    ranks int2[];
BEGIN
    IF EXISTS (SELECT FROM {schema}.limit_rule r WHERE r.closes_lane) THEN
        closing := ARRAY(
            SELECT l.limit_name FROM (
                SELECT DISTINCT a.queue, a.name FROM {schema}.lane a
                WHERE a.id = ANY (ARRAY(SELECT DISTINCT unnest(p_main_lanes[:p_leased])))
            ) w CROSS JOIN LATERAL {schema}.list_lane_limits_1(w.queue, w.name) l
        );
    END IF;
    IF p_limits IS NOT NULL OR closing <> '{}' THEN
        PERFORM {schema}.lock_limits_1(ARRAY(SELECT DISTINCT unnest(p_limits || closing)));
    END IF;
    IF 0 > ANY (p_main_lanes) THEN
        SELECT array_agg(c.queue), array_agg(c.rank) INTO queues, ranks FROM (
            SELECT DISTINCT a.queue, a.rank FROM {schema}.lane a WHERE a.id = ANY (p_main_lanes) AND a.id < 0
        ) c;
        INSERT INTO {schema}.share_class (queue, rank, min_virtual_time)
        SELECT u.queue, u.rank, 0 FROM unnest(queues, ranks) AS u (queue, rank)
        WHERE NOT EXISTS (SELECT FROM {schema}.share_class f WHERE f.queue = u.queue AND f.rank = u.rank OFFSET 0)
        ORDER BY 1, 2 ON CONFLICT DO NOTHING;
        PERFORM FROM {schema}.share_class f WHERE f.queue = ANY (queues) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    END IF;
    RETURN closing <> '{}';
END $$;

-- name: get_limits_version
-- Return a number that changes when the limits for which jobs of these names are parked or their keys change, or parked jobs return
-- because of that. Limits that close lanes are compared by `read_planned_lane_limits_1`.
-- Inputs: the job names
-- Result: the number
CREATE OR REPLACE FUNCTION {schema}.get_limits_version_1(p_names text[]) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    RETURN hashtextextended(concat_ws(' ',
        (
            SELECT string_agg(CAST(ROW(k.job_name, k.limit_name, k.concurrency, k.interval, k.burst, k.cost) AS text), ''
                ORDER BY k.job_name, k.limit_name)
            FROM {schema}.limit_rule k WHERE k.job_name = ANY (p_names) AND NOT k.closes_lane
        ),
        (SELECT string_agg(CAST(c AS text), '' ORDER BY c.name, c.key) FROM {schema}.limit_change c WHERE c.for_key),
        EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key)
    ), 0);
END $$;

-- name: match_uses
-- Compare the uses of keys with what a plan has read.
-- Inputs: limits and keys, and what was read of each
-- Result: the numbers of the keys (NULL: none yet); NULL if a use differs
CREATE OR REPLACE FUNCTION {schema}.match_uses_1(
    p_limits text[], p_keys text[], p_in_use int4[], p_spent int8[], p_opens int8[]
) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    same bool;
    numbers int8[];
BEGIN
    SELECT bool_and((coalesce(u.in_use, 0), coalesce(u.spent_until, 0), u.opens_at) IS NOT DISTINCT FROM (n.in_use, n.spent, n.opens)),
        array_agg(u.number)
    INTO same, numbers
    FROM unnest(p_limits, p_keys, p_in_use, p_spent, p_opens) AS n (limit_name, key, in_use, spent, opens)
    LEFT JOIN LATERAL (SELECT * FROM {schema}.limit_use u WHERE u.key = n.key AND u.limit_name = n.limit_name OFFSET 0) u ON true;
    RETURN CASE WHEN same THEN numbers END;
END $$;

-- name: write_uses
-- Store the uses of keys.
-- Inputs: the numbers of the keys (NULL: none yet), as from `match_uses_1`; limits and keys; the uses
-- Result: the numbers. `width_bucket` finds the place of a number.
CREATE OR REPLACE FUNCTION {schema}.write_uses_1(
    p_numbers int8[], p_limits text[], p_keys text[], p_in_use int4[], p_spent int8[], p_opens int8[]
) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    IF array_position(p_numbers, NULL) IS NOT NULL THEN
        INSERT INTO {schema}.limit_use (limit_name, key, in_use, spent_until)
        SELECT u.limit_name, u.key, 0, 0 FROM unnest(p_numbers, p_limits, p_keys) AS u (number, limit_name, key)
        WHERE u.number IS NULL ON CONFLICT DO NOTHING;
        p_numbers := ARRAY(
            SELECT coalesce(n.number, u.number)
            FROM unnest(p_numbers, p_limits, p_keys) WITH ORDINALITY AS n (number, limit_name, key, nth)
            LEFT JOIN LATERAL (
                SELECT u.number FROM {schema}.limit_use u
                WHERE n.number IS NULL AND u.key = n.key AND u.limit_name = n.limit_name OFFSET 0
            ) u ON true
            ORDER BY n.nth
        );
    END IF;
    SELECT array_agg(u.number) AS numbers, array_agg(u.in_use) AS in_use, array_agg(u.spent) AS spent, array_agg(u.opens) AS opens
    INTO changed FROM (
        SELECT * FROM unnest(p_numbers, p_in_use, p_spent, p_opens) AS u (number, in_use, spent, opens) ORDER BY u.number OFFSET 0
    ) u;
    UPDATE {schema}.limit_use u SET in_use = changed.in_use[width_bucket(u.number, changed.numbers)],
        spent_until = changed.spent[width_bucket(u.number, changed.numbers)],
        opens_at = changed.opens[width_bucket(u.number, changed.numbers)]
    WHERE u.number = ANY (changed.numbers);
    RETURN p_numbers;
END $$;

-- name: is_any_paused
-- Test whether a queue of the planned jobs is paused.
-- Inputs: the time; the lanes of the jobs
CREATE OR REPLACE FUNCTION {schema}.is_any_paused_1(p_now int8, p_lanes int4[]) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.paused_queue p WHERE (p.ends_at IS NULL OR p.ends_at > p_now) AND p.queue = ANY (ARRAY(
            SELECT a.queue FROM {schema}.lane a WHERE a.id = ANY (p_lanes)
        ))
    );
END $$;

-- name: read_planned_lane_limits
-- Read the limits that close the lanes of planned jobs, and test whether each of the jobs has room when it is leased.
-- Inputs: the time; the lanes of the jobs in the order of the plan
-- Result:
--   has_room                            whether all jobs have room; else the rest is not to be used
--   lanes, job_numbers, queue_numbers   the lanes that have limits: the numbers in `limit_use` of that of the job name and of that of the
--                                       queue (NULL: there is none)
-- Names of one queue may have different maxima in its limit, so the jobs are counted in their order.
CREATE OR REPLACE FUNCTION {schema}.read_planned_lane_limits_1(
    p_now int8, p_lanes int4[], OUT has_room bool, OUT lanes int4[], OUT job_numbers int8[], OUT queue_numbers int8[]
) LANGUAGE plpgsql AS $$
BEGIN
    WITH lane_limit AS MATERIALIZED (
        SELECT a.id AS lane, l.* FROM (
            SELECT a.id, a.queue, a.name FROM {schema}.lane a WHERE a.id = ANY (ARRAY(SELECT DISTINCT unnest(p_lanes))) OFFSET 0
        ) a CROSS JOIN LATERAL {schema}.list_lane_limits_1(a.queue, a.name) l
    ), numbered AS (
        SELECT l.lane, max(l.number) FILTER (WHERE starts_with(l.limit_name, 'job:')) AS of_job,
            max(l.number) FILTER (WHERE starts_with(l.limit_name, 'queue:')) AS of_queue
        FROM lane_limit l GROUP BY l.lane
    ), planned AS (
        SELECT l.*, row_number() OVER placed - 1 AS jobs_before,
            sum(coalesce(l.cost * l.unit_time, 0)) OVER placed - coalesce(l.cost * l.unit_time, 0) AS units_before
        FROM unnest(p_lanes) WITH ORDINALITY AS p (lane, place) JOIN lane_limit l ON l.lane = p.lane
        WINDOW placed AS (PARTITION BY l.number ORDER BY p.place)
    )
    SELECT (
        SELECT bool_and((p.in_use + p.jobs_before < p.concurrency) IS NOT FALSE AND ({schema}.count_room_1(
            p_now, p.unit_time, p.burst, p.cost, GREATEST(p.spent_until, p_now) + CAST(p.units_before AS int8)) > 0) IS NOT FALSE)
        FROM planned p
    ), array_agg(n.lane), array_agg(n.of_job), array_agg(n.of_queue)
    INTO has_room, lanes, job_numbers, queue_numbers FROM numbered n;
    has_room := coalesce(has_room, true);
END $$;

-- name: count_leased_in_lane_limits
-- Count the jobs that a plan has leased in the limits that close their lanes.
-- Inputs: the time; the lane of each leased job
-- Locks: limits that the caller has locked already
CREATE OR REPLACE FUNCTION {schema}.count_leased_in_lane_limits_1(p_now int8, p_lanes int4[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    used record;
BEGIN
    SELECT array_agg(u.number) AS numbers, array_agg(u.jobs) AS jobs, array_agg(u.units) AS units INTO used FROM (
        SELECT l.number, CAST(sum(w.jobs) AS int4) AS jobs,
            CAST(sum(w.jobs * coalesce(l.cost * l.unit_time, 0)) AS int8) AS units
        FROM (
            SELECT a.queue, a.name, count(*) AS jobs FROM unnest(p_lanes) AS p (lane) JOIN {schema}.lane a ON a.id = p.lane
            GROUP BY 1, 2 OFFSET 0
        ) w CROSS JOIN LATERAL {schema}.list_lane_limits_1(w.queue, w.name) l GROUP BY 1 ORDER BY 1 OFFSET 0
    ) u;
    PERFORM {schema}.take_uses_1(p_now, used.numbers, used.jobs, used.units);
END $$;

-- name: match_shares
-- Compare the virtual times of shares and share classes with what a plan has read.
-- Inputs: shares, and the virtual time of each; queues and ranks, and the minimum of each
-- Result: whether they are the same
CREATE OR REPLACE FUNCTION {schema}.match_shares_1(
    p_shares int4[], p_times int8[], p_class_queues text[], p_class_ranks int2[], p_minimums int8[]
) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    RETURN p_shares IS NULL OR NOT EXISTS (
        SELECT FROM unnest(p_class_queues, p_class_ranks, p_minimums) AS u (queue, rank, min_virtual_time)
        JOIN {schema}.share_class f ON f.queue = u.queue AND f.rank = u.rank WHERE f.min_virtual_time <> u.min_virtual_time
    ) AND NOT EXISTS (
        SELECT FROM unnest(p_shares, p_times) AS u (share, virtual_time)
        LEFT JOIN {schema}.tenant_share s ON s.share = u.share WHERE s.virtual_time IS DISTINCT FROM u.virtual_time
    );
END $$;

-- name: lock_planned_jobs
-- Lock the rows of planned jobs in `ready` and `parked`.
-- Inputs: seqs, due times and lanes of the jobs (NULL: it is parked); further parked jobs
-- Result: the rows in `ready`, and the place of each in the arrays; the jobs that are gone, or that another transaction has locked
CREATE OR REPLACE FUNCTION {schema}.lock_planned_jobs_1(
    p_seqs int8[], p_dues int8[], p_lanes int4[], p_returned int8[], OUT ctids tid[], OUT places int4[], OUT missing int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    parked int8[];
BEGIN
    SELECT array_agg(f.ctid), array_agg(f.place) INTO ctids, places FROM (
        SELECT r.ctid, CAST(u.place AS int4) AS place FROM unnest(p_seqs, p_dues, p_lanes) WITH ORDINALITY AS u (seq, due, lane, place),
        LATERAL (
            SELECT r.ctid FROM {schema}.ready r WHERE r.lane = u.lane AND r.due = u.due AND r.seq = u.seq FOR UPDATE SKIP LOCKED
        ) r
    ) f;
    missing := '{}';
    IF cardinality(p_seqs) = coalesce(cardinality(places), 0) AND p_returned IS NULL THEN
        RETURN;
    END IF;
    parked := p_returned || ARRAY(SELECT u.seq FROM unnest(p_seqs, p_lanes) AS u (seq, lane) WHERE u.lane IS NULL);
    parked := ARRAY(SELECT p.seq FROM {schema}.parked p WHERE p.seq = ANY (parked) FOR UPDATE SKIP LOCKED);
    missing := ARRAY(
        SELECT u.seq FROM unnest(p_seqs, p_lanes) WITH ORDINALITY AS u (seq, lane, place)
        WHERE NOT coalesce(CASE WHEN u.lane IS NULL THEN u.seq = ANY (parked) ELSE u.place = ANY (places) END, false)
        UNION ALL
        SELECT r FROM unnest(p_returned) r WHERE r <> ALL (parked)
    );
END $$;
