-- Exchange: settle jobs, promote due jobs, reserve jobs. Workers call it for every batch.
--
-- Atomic: one transaction. Exchanges are numbered, so that a repeated call gets the same reply. The commit is
-- asynchronous: a server that crashes may lose an exchange. Jobs are then repeated, but none is lost.
-- Locks: the advisory lock of the session; `limit_rule` and `paused_queue` in ROW SHARE; unique keys; then rows of `ready` with SKIP
-- LOCKED. Candidates are counted without locks first (`plan_claims`), because other workers skip locked candidates.
-- Low-water marks (`p_low_water_marks`): a lane is read from a due time before which it is known to be empty (decision
-- 0004). Functions receive and return lists as arrays of the same length, one element for each lane or job.
-- Rarely needed data (attempt state, history, progress) is read by separate functions, to keep it out of the hot plans.
--
-- How jobs are leased. consuming.py chooses the exchange; the server decides within it.
--
--   `exchange_1`, if no limit and no tenant exists and no queue is capped:
--     `lease_jobs_1`          one of the requested lanes has jobs, and their sizes need not be checked
--     `lease_merged_jobs_1`   several lanes have jobs, or sizes are checked: the first jobs of a merge. If others have locked all of
--                             them, from the lanes behind
--   the planned exchange (planned_exchange.sql), else:
--     `lease_jobs_1`          one lane has jobs without tenants, and all their keys have room for all of them (`lock_open_jobs_1`)
--     `apply_plan_1`          what `plan_reserve` or `plan_first_turns` has decided in the worker
--
-- A planned exchange that meets conflicts repeats its plan under locks (planned_exchange.py). After some of these it leases nothing.

-- name: exchange
-- Settle finished jobs, promote due jobs, and lease jobs to a session.
--
-- It serves jobs in the order of the merge alone. If limits or tenants exist, it changes nothing, and the worker plans the exchange
-- (`planned_exchange.sql`). Parameters are flat arrays, because the driver encodes them faster than rows.
--
-- Inputs:
--   p_now                       the time of a test's clock, or NULL for the server's clock
--   p_session                   the id of the session
--   p_number                    the number of the exchange: one more than the last, or the last one again
--   p_kinds                     one letter for each settlement, as for `settle_each_1`; NULL: all are completions of
--                               different jobs
--   p_seqs, p_ids, p_fences, p_nonces
--                               the leases that are settled; a single fence applies to all
--   p_bodies, p_delays, p_texts, p_fractions
--                               the data of the settlements, as for `settle_each_1`, or for `complete_all_1` if `p_kinds` is
--                               NULL. Then `p_ids`, `p_delays` and `p_fractions` are not used.
--   p_total                     the maximum number of jobs to lease
--   p_nonce                     the nonce of the new leases
--   p_ageing                    microseconds of waiting that raise a job by one level; 0: no ageing
--   p_queues, p_names           the lanes from which jobs are requested
--   p_levels                    the priority level of the queue of each of these lanes
--   p_max_bytes                 the maximum number of bytes of all deliveries
--   p_low_water_lanes, p_low_water_marks
--                               lanes in ascending order, and for each the due time before which it is known to be empty.
--                               `width_bucket` finds the place of a lane: the time does not grow with the square of the lanes.
--   p_scheduled_low_water_mark  the same for `scheduled`
--
-- Result: one row of arrays with an element for each leased job, if there are any; then one status row. Each row has NULL in the
-- columns of the other.
--   Columns of the leased jobs:
--     reply_positions           their positions in the reply, from 1; NULL: all have the same. Jobs of the same lane may share a
--                               position; they are ordered by due time and seq.
--     seqs, dues, created_at, job_lanes, fences, failures, lost, ids, options, payloads
--                               the jobs and their leases; fences, failures and lost: NULL if all jobs are new
--     runs                      their durable runs, as from `read_small_run_1`; NULL: none has one
--   Columns of the status row:
--     outcome                   ok: the exchange was applied or repeated; session_lost: the session is not alive;
--                               out_of_order: another number is expected; restricted: it must be planned. Only for ok the
--                               other columns have values.
--     last_number               of out_of_order: the number of the last exchange
--     now                       the time of the exchange
--     results                   one letter for each settlement: d done, a already settled by this token, s stale
--     nonce                     the nonce of the leases in this reply
--     next_due                  the earliest due time in `scheduled` or of a suspended durable run, unless another session looks then; of a
--                               planned exchange also when a rate limit allows the next job of a requested lane; NULL: neither. `now` or
--                               earlier if changes of flows are left to the next exchange.
--     waiting                   which of the requested lanes still have jobs (indexes, from 1)
--     to_notify                 the queues to notify
--     lanes, queues, names, ranks
--                               the lanes of the leased jobs
--     head_lanes, head_dues     the open lanes, and the earliest due time in each (NULL: empty)
--     next_xid                  the transaction number after that of the exchange
--     oldest_xid                the oldest transaction that was running when the lanes were read. When it is at least
--                               the `next_xid` of an earlier reply, all transactions up to that exchange have ended.
--     clock_delay               microseconds between the first reading of the clock and `now`. A transaction with a
--                               smaller number may have read the clock up to that much earlier than `now`.
-- It fails with NB001 if `p_kinds` is NULL and the session does not hold all the leases.
-- A repeated call applies nothing. It releases the jobs that no longer fit in `p_max_bytes`.
-- The sizes of payloads are checked only if payloads were ever stored outside their rows (TOAST), or if `p_total` times
-- 4 KB is more than `p_max_bytes`. A payload inside its row has 2 KB at most, unless it compresses well.
-- Locks: the advisory lock of the session; unique keys; the rows of the settled jobs; as `resolve_flows_1`; then the rows of jobs to
-- lease. In a repeat the limits of its jobs, share classes of tenants, then the rows of jobs
-- Atomic: one transaction with an asynchronous commit
CREATE OR REPLACE FUNCTION {schema}.exchange_1(
    p_now int8, p_session text, p_number int8,
    p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[],
    p_texts text[], p_fractions float8[],
    p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[], p_levels int8[], p_max_bytes int8,
    p_low_water_lanes int4[], p_low_water_marks int8[], p_scheduled_low_water_mark int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
DECLARE
    first_reading int8;
    now int8;
    session record;
    features text[];
    has_pauses bool := false;
    settled record;
    open_lanes record;
    lanes record;  -- the open lanes from which jobs are taken
    counts int4[];
    head_dues int8[];
    first_dues int8[];
    lane_index int4;
    is_mixed bool;
    checks_sizes bool;
    leased int4 := 0;
    reply {schema}.exchange_reply;
BEGIN
    -- Step 1: lock the session, and look whether the exchange is plain.
    first_reading := {schema}.begin_exchange_1(p_session);
    now := {schema}.get_write_time_1(p_now);
    session := {schema}.find_exchange_1(p_session, p_number);
    IF session.outcome <> 'ok' THEN
        RETURN NEXT {schema}.make_status_reply_1(session.outcome, session.last_number);
        RETURN;
    ELSIF session.is_repeated THEN
        RETURN QUERY SELECT * FROM {schema}.reply_again_1(now, session.number, p_number, session.results, session.nonce,
            p_total, p_max_bytes, p_queues, p_names, p_low_water_lanes, p_low_water_marks, session.oldest_xid);
        RETURN;
    END IF;
    features := ARRAY(SELECT f.name FROM {schema}.used_feature f);
    IF features && '{limits,pauses,tenants}' THEN
        IF {schema}.is_restricted_1() THEN
            RETURN NEXT {schema}.make_status_reply_1('restricted', NULL);
            RETURN;
        END IF;
        has_pauses := EXISTS (SELECT FROM {schema}.paused_queue p WHERE p.ends_at IS NULL OR p.ends_at > now);
    END IF;

    -- Step 2: settle and promote.
    settled := {schema}.settle_and_promote_1(now, session.number, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
        p_texts, p_fractions, p_scheduled_low_water_mark, features, false, false);

    -- Step 3: read the first job of each requested lane.
    open_lanes := {schema}.read_open_lanes_1(now, p_queues, p_names, p_levels, p_low_water_lanes, p_low_water_marks, has_pauses);
    lanes := open_lanes;
    head_dues := open_lanes.head_dues;
    first_dues := array_remove(head_dues, NULL);
    lane_index := CASE WHEN cardinality(first_dues) = 1 THEN array_position(head_dues, first_dues[1]) END;

    -- Step 4: lease.
    IF p_total > 0 AND first_dues <> '{}' THEN
        IF p_total > 64 THEN
            PERFORM {schema}.wait_for_others_1(session.number);
        END IF;
        checks_sizes := {schema}.may_exceed_1(p_total, p_max_bytes);
        IF lane_index IS NOT NULL AND NOT checks_sizes THEN  -- one lane has jobs: no merge
            RETURN QUERY SELECT * FROM {schema}.lease_jobs_1(
                now, session.number, p_number, p_nonce, lanes.main_lanes[lane_index], ARRAY(
                    SELECT r.ctid FROM {schema}.ready r
                    WHERE r.lane = lanes.ids[lane_index] AND r.due >= lanes.low_water_marks[lane_index]
                    ORDER BY r.due, r.seq LIMIT p_total FOR UPDATE SKIP LOCKED
                ), NULL, NULL, NULL, 0);
            GET DIAGNOSTICS leased = ROW_COUNT;
            head_dues[lane_index] := {schema}.read_lane_head_1(lanes.ids[lane_index], lanes.low_water_marks[lane_index]);
        ELSE
            is_mixed := cardinality(lanes.ids) > (SELECT count(DISTINCT r.place) FROM unnest(lanes.request_indexes) AS r (place));
            lanes := {schema}.find_first_lanes_1(p_total, now, p_ageing, is_mixed, lanes.ids, lanes.main_lanes,
                lanes.request_indexes, lanes.ranks, lanes.levels, lanes.low_water_marks, lanes.queues, lanes.names, head_dues);
            LOOP
                counts := {schema}.plan_claims_1(p_total, now, p_ageing, is_mixed, lanes.ids, lanes.request_indexes, lanes.ranks,
                    lanes.levels, lanes.low_water_marks);
                RETURN QUERY SELECT * FROM {schema}.lease_merged_jobs_1(now, session.number, p_number, p_nonce, p_ageing, is_mixed,
                    lanes.ids, lanes.main_lanes, lanes.request_indexes, lanes.ranks, lanes.levels, lanes.low_water_marks,
                    counts, CASE WHEN checks_sizes THEN p_max_bytes END);
                GET DIAGNOSTICS leased = ROW_COUNT;
                EXIT WHEN leased > 0;
                IF array_remove(counts, 0) <> '{}' THEN  -- other transactions have locked all jobs of the planned lanes
                    lanes.low_water_marks := {schema}.skip_lanes_1(lanes.low_water_marks, counts);
                ELSE
                    EXIT WHEN cardinality(lanes.ids) = cardinality(open_lanes.ids);
                    lanes := open_lanes;  -- then from the lanes behind them
                END IF;
            END LOOP;
            head_dues := {schema}.read_lane_heads_again_1(open_lanes.ids, head_dues, lanes.ids, lanes.low_water_marks, counts);
        END IF;
    END IF;

    -- Step 5: record the exchange, and return the status row.
    reply := {schema}.finish_exchange_1(p_now, first_reading, now, session.number, session.oldest_xid, p_number, p_nonce, p_total,
        settled.results, settled.to_notify, settled.next_due, settled.is_cut, settled.promoted_lanes, false);
    IF cardinality(first_dues) > 1 THEN
        reply.waiting := ARRAY(SELECT DISTINCT l.place FROM unnest(open_lanes.request_indexes, head_dues) AS l (place, due)
            WHERE l.due IS NOT NULL ORDER BY 1 LIMIT 64);  -- MAX_WAITING_LANES in core/exchange.py
    ELSIF head_dues[lane_index] IS NOT NULL THEN
        reply.waiting := open_lanes.request_indexes[lane_index:lane_index];
    END IF;
    IF leased > 0 THEN
        reply.lanes := lanes.main_lanes;
        reply.queues := lanes.queues;
        reply.names := lanes.names;
        reply.ranks := lanes.ranks;
    END IF;
    reply.head_lanes := open_lanes.ids;
    reply.head_dues := head_dues;
    RETURN NEXT reply;
END $$;

-- name: settle_and_promote
-- Apply the settlements of an exchange and what follows from them, resume durable runs, and promote due jobs.
-- Inputs: the time; the number of the session; the settlements as for `exchange_1`; a due time before which nothing is known to be
--   scheduled; the features in use (`used_feature`); whether tenants may have been charged; whether the changes of members of
--   flows are left to the worker, which calls `continue_flows_1` after its transaction
-- Result:
--   results         one letter for each settlement, as of `settle_each_1`
--   to_notify       the queues to notify; NULL: none
--   promoted_lanes  the lane of each promoted job; NULL: none
--   next_due        the earliest due time in `scheduled` or of a suspended durable run; NULL: none
--   is_cut          whether changes of flows are left to the next exchange
-- Locks: the rows of the settled jobs and their unique keys; as `resume_due_1` and `resolve_flows_1`; the promoted rows
-- What no feature needs is not read: a statement in PL/pgSQL takes several microseconds.
CREATE OR REPLACE FUNCTION {schema}.settle_and_promote_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[],
    p_delays int8[], p_texts text[], p_fractions float8[], p_scheduled_low_water_mark int8, p_features text[], p_has_charges bool,
    p_leaves_changes bool,
    OUT results text, OUT to_notify text[], OUT promoted_lanes int4[], OUT next_due int8, OUT is_cut bool
) LANGUAGE plpgsql AS $$
DECLARE
    settled record;
    changes {schema}.flow_change[];
    has_runs bool := p_features @> '{runs}' OR strpos(p_kinds, 's') > 0;  -- durable runs may wait
    next_run int8;
    resumed_lanes int4[];
BEGIN
    results := '';
    is_cut := false;
    IF p_seqs IS NOT NULL THEN
        settled := {schema}.settle_all_1(p_now, p_session, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
            p_texts, p_fractions, p_has_charges);
        results := settled.codes;
        changes := settled.changes;
        to_notify := CASE WHEN settled.to_notify IS NOT NULL THEN {schema}.get_queues_of_lanes_1(settled.to_notify) END
            || CASE WHEN settled.key_numbers IS NOT NULL THEN {schema}.release_keys_1(p_now, settled.key_numbers) END;
    END IF;
    IF has_runs THEN
        next_run := (
            SELECT CAST(encode(c.source, 'escape') AS int8) FROM {schema}.condition c WHERE c.source_kind = 'time' AND c.source >=
                {schema}.encode_time_1(CASE WHEN p_scheduled_low_water_mark <= p_now THEN p_scheduled_low_water_mark END)
            ORDER BY c.source LIMIT 1
        );
        IF next_run <= p_now THEN
            SELECT r.lanes, r.next_due INTO resumed_lanes, next_run
            FROM {schema}.resume_due_1(p_now, 250, p_scheduled_low_water_mark) r;  -- MAX_RESOLVED in core/flows.py
            to_notify := to_notify || {schema}.get_queues_of_lanes_1(resumed_lanes);
        END IF;
    END IF;
    IF p_leaves_changes THEN
        IF changes IS NOT NULL THEN
            PERFORM {schema}.put_changes_1(changes);
        END IF;
    ELSIF has_runs OR p_features @> '{flows}' THEN
        IF changes IS NOT NULL OR EXISTS (SELECT FROM {schema}.flow_change) THEN
            SELECT r.to_notify, r.is_cut INTO resumed_lanes, is_cut FROM {schema}.resolve_flows_1(p_now, changes) r;
            to_notify := to_notify || {schema}.get_queues_of_lanes_1(resumed_lanes);
        END IF;
    END IF;
    next_due := (
        SELECT z.due FROM {schema}.scheduled z WHERE z.due >= CASE WHEN p_scheduled_low_water_mark <= p_now
            THEN p_scheduled_low_water_mark ELSE {schema}.get_lowest_time_1() END ORDER BY z.due, z.seq LIMIT 1
    );
    IF next_due <= p_now THEN
        SELECT p.next_due, p.lanes INTO next_due, promoted_lanes
        FROM {schema}.promote_due_1(p_now, 1000, p_scheduled_low_water_mark) p;
    END IF;
    next_due := LEAST(next_due, next_run);
END $$;

-- name: finish_exchange
-- Record an exchange that was applied, and make its status row.
-- Inputs: the time of a test's clock; the first reading of the server's clock; the time; the number of the session; `oldest_xid` as
--   from `find_exchange_1`; the number of the exchange, its nonce and its maximum number of jobs; the result of
--   `settle_and_promote_1`; whether a plan follows, which decides who is notified of the promoted jobs
-- Result: the row without what concerns lanes
-- Locks: as `report_due_1`
CREATE OR REPLACE FUNCTION {schema}.finish_exchange_1(
    p_now int8, p_first_reading int8, p_time int8, p_session int4, p_oldest_xid int8, p_number int8, p_nonce bytea, p_total int4,
    p_results text, p_to_notify text[], p_next_due int8, p_is_cut bool, p_promoted_lanes int4[], p_is_open bool
) RETURNS {schema}.exchange_reply
LANGUAGE plpgsql AS $$
BEGIN
    IF p_promoted_lanes IS NOT NULL AND NOT p_is_open THEN
        p_to_notify := p_to_notify || {schema}.list_queues_of_left_jobs_1(p_promoted_lanes, p_session, p_number);
    END IF;
    IF p_total > 0 AND p_next_due <= p_time + 20000000 THEN  -- DUE_WINDOW in core/exchange.py
        p_next_due := {schema}.report_due_1(p_time, p_session, p_next_due);
    END IF;
    PERFORM {schema}.record_exchange_1(p_session, p_number, p_nonce, p_results, p_is_open);
    RETURN CAST(ROW(
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,  -- the columns of the leased jobs
        CASE WHEN p_is_open THEN 'open' ELSE 'ok' END, NULL, p_time, p_results, p_nonce,
        CASE WHEN p_is_cut THEN LEAST(p_time, p_next_due) ELSE p_next_due END, NULL, p_to_notify,
        NULL, NULL, NULL, NULL, NULL, NULL,  -- the lanes
        pg_current_xact_id()::text::int8 + 1, p_oldest_xid,
        CASE WHEN p_now IS NULL THEN LEAST(p_time - p_first_reading, 2000000000) ELSE 0 END
    ) AS {schema}.exchange_reply);
END $$;

-- name: begin_exchange
-- Lock a session, and keep limits and pauses from being added.
-- Inputs: the id of the session
-- Result: the time of the server's clock before this transaction has a number
-- Locks: the advisory lock of the session; `limit_rule` and `paused_queue` in ROW SHARE
CREATE OR REPLACE FUNCTION {schema}.begin_exchange_1(p_session text) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    IF set_config('synchronous_commit', 'off', true) IS NULL
        OR pg_advisory_xact_lock(hashtextextended(p_session, 7041)) IS NULL
    THEN  -- never true: an IF costs less than a statement
        RETURN NULL;
    END IF;
    LOCK TABLE {schema}.limit_rule, {schema}.paused_queue IN ROW SHARE MODE;
    RETURN CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8);
END $$;

-- name: wait_for_others
-- Wait until at most three other exchanges lease many jobs. Each exchange reads past all rows that others have locked: that of many
-- workers at once costs more than what they lease.
-- Inputs: the number of the session
-- Locks: advisory lock 7049, for 100 ms at most. Its owner waits for no other lock, but its client may have stopped before it has read the
-- reply: the others then continue without the lock.
CREATE OR REPLACE FUNCTION {schema}.wait_for_others_1(p_session int4) RETURNS void
LANGUAGE plpgsql SET lock_timeout TO '100ms' AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.exchange_1 ' || p_session % 4, 7049)) THEN
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.exchange_1 ' || p_session % 4, 7049));
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END IF;
END $$;

-- name: find_exchange
-- Find a session, and whether an exchange is the next one or the last one again.
-- Inputs: the id of the session; the number of the exchange
-- Result:
--   outcome             as of `exchange_1`
--   number              the number of the session
--   last_number, results, nonce, is_open
--                       the row of its last exchange in `exchange_log`; 0 and NULL: there is none
--   is_repeated         whether the exchange is the last one
--   oldest_xid          as in the status row of `exchange_1`
CREATE OR REPLACE FUNCTION {schema}.find_exchange_1(
    p_session text, p_number int8, OUT outcome text, OUT number int4, OUT last_number int8, OUT results text, OUT nonce bytea,
    OUT is_open bool, OUT is_repeated bool, OUT oldest_xid int8
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT s.number, coalesce(last.number, 0), last.results, last.nonce, last.is_open, last.number = p_number,
        pg_snapshot_xmin(pg_current_snapshot())::text::int8
    INTO number, last_number, results, nonce, is_open, is_repeated, oldest_xid
    FROM {schema}.session s LEFT JOIN LATERAL (
        SELECT * FROM {schema}.exchange_log e WHERE e.session = s.number ORDER BY e.number DESC LIMIT 1
    ) last ON true
    WHERE s.id = p_session AND s.ended_at IS NULL AND s.left_at IS NULL;
    is_repeated := coalesce(is_repeated, false);
    outcome := CASE WHEN number IS NULL THEN 'session_lost'
        WHEN is_repeated OR p_number = last_number + 1 THEN 'ok' ELSE 'out_of_order' END;
END $$;

-- name: record_exchange
-- Store that an exchange was applied.
-- Inputs: the session; the number of the exchange and its nonce; one letter for each settlement; whether a plan follows
CREATE OR REPLACE FUNCTION {schema}.record_exchange_1(
    p_session int4, p_number int8, p_nonce bytea, p_results text, p_is_open bool
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.exchange_log (session, number, nonce, results, is_open)
    VALUES (p_session, p_number, p_nonce, p_results, p_is_open);
    IF p_number % 16 = 0 THEN  -- less work than one deletion in each exchange
        DELETE FROM {schema}.exchange_log e WHERE e.session = p_session AND e.number < p_number - 1;
    END IF;
END $$;

-- name: is_restricted
-- Test whether limits or tenants may restrict what an exchange leases, or count the leases that it settles.
CREATE OR REPLACE FUNCTION {schema}.is_restricted_1() RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.limit_rule) OR EXISTS (SELECT FROM {schema}.limit_use)
        OR EXISTS (SELECT FROM {schema}.parked)
        OR EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key)
        OR EXISTS (SELECT FROM {schema}.lane a WHERE a.id < 0);  -- of a tenant
END $$;

-- name: is_paused
-- Test whether a queue is paused.
-- Inputs: the time; the queue
CREATE OR REPLACE FUNCTION {schema}.is_paused_1(p_now int8, p_queue text) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.paused_queue p WHERE p.queue = p_queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
    );
END $$;

-- name: may_exceed
-- Test whether the sizes of payloads have to be checked.
-- Inputs: the maximum number of jobs, and of bytes of all deliveries
CREATE OR REPLACE FUNCTION {schema}.may_exceed_1(p_total int4, p_max_bytes int8) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_total > 1 AND (p_total * 4096::int8 > p_max_bytes OR (
        SELECT pg_relation_size(c.reltoastrelid) > 0 FROM pg_class c WHERE c.oid = CAST('{schema}.job' AS regclass)
    ));
END $$;

-- name: reply_again
-- Return the reply of the last exchange again. Jobs that no longer fit are released, and the exchange is closed for a plan that
-- arrives late.
-- Inputs: the time; the session; number, results and nonce of the exchange; then as for `exchange_1`; as from `find_exchange_1`
-- Result: as of `exchange_1`
-- Locks: the limits of its jobs; then rows of jobs
CREATE OR REPLACE FUNCTION {schema}.reply_again_1(
    p_now int8, p_session int4, p_number int8, p_results text, p_nonce bytea, p_total int4, p_max_bytes int8,
    p_queues text[], p_names text[], p_low_water_lanes int4[], p_low_water_marks int8[], p_oldest_xid int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
DECLARE
    status {schema}.exchange_reply := {schema}.make_status_reply_1('ok', NULL);
BEGIN
    UPDATE {schema}.exchange_log e SET is_open = false WHERE e.session = p_session AND e.number = p_number AND e.is_open;
    PERFORM {schema}.lock_affected_limits_1(p_now, p_session, ARRAY(
        SELECT l.seq FROM {schema}.lease l WHERE l.session = p_session AND l.exchange_number = p_number
    ), p_queues, p_names, false, false);
    PERFORM {schema}.lock_share_classes_1(p_queues, p_session, NULL);
    status.to_notify := {schema}.get_queues_of_lanes_1({schema}.release_excess_1(p_now, p_session, p_number, p_max_bytes));
    RETURN QUERY SELECT * FROM {schema}.repeat_exchange_1(p_session, p_number);
    SELECT * INTO status.lanes, status.ranks, status.queues, status.names
    FROM {schema}.get_lanes_of_exchange_1(p_session, p_number);
    status.now := p_now;
    status.results := p_results;
    status.nonce := p_nonce;
    status.next_due := LEAST((SELECT min(z.due) FROM {schema}.scheduled z), {schema}.find_next_run_1());
    IF p_total > 0 AND status.next_due <= p_now + 20000000 THEN  -- DUE_WINDOW in core/exchange.py
        status.next_due := {schema}.report_due_1(p_now, p_session, status.next_due);
    END IF;
    status.next_due := LEAST(status.next_due, {schema}.find_next_opening_1(p_now, p_queues, p_names));
    status.waiting := {schema}.find_waiting_lanes_1(p_now, p_queues, p_names, p_low_water_lanes, p_low_water_marks);
    status.oldest_xid := p_oldest_xid;
    status.next_xid := pg_current_xact_id()::text::int8 + 1;
    status.clock_delay := 0;
    RETURN NEXT status;
END $$;

-- name: exchange_pooled
-- Run `exchange_1` on a pooled connection, which does not have the planner settings of the exchange connection.
CREATE OR REPLACE FUNCTION {schema}.exchange_pooled_1(
    p_now int8, p_session text, p_number int8,
    p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[],
    p_texts text[], p_fractions float8[],
    p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[], p_levels int8[],
    p_max_bytes int8,
    p_low_water_lanes int4[], p_low_water_marks int8[], p_scheduled_low_water_mark int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET enable_memoize TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
BEGIN
    RETURN QUERY SELECT * FROM {schema}.exchange_1(
        p_now, p_session, p_number, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
        p_texts, p_fractions, p_total, p_nonce, p_ageing, p_queues, p_names, p_levels,
        p_max_bytes, p_low_water_lanes, p_low_water_marks, p_scheduled_low_water_mark
    );
END $$;

-- name: make_status_reply
-- Make the status row of an exchange that was refused.
-- Inputs: the outcome; the number of the last exchange
-- Result: the row
CREATE OR REPLACE FUNCTION {schema}.make_status_reply_1(p_outcome text,
    p_last_number int8) RETURNS {schema}.exchange_reply
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    reply {schema}.exchange_reply;
BEGIN
    reply.outcome := p_outcome;
    reply.last_number := p_last_number;
    RETURN reply;
END $$;

-- name: promote_due
-- Move scheduled jobs that are due to `ready`, earliest first.
-- Inputs: the time; the maximum number of jobs; a due time before which nothing is known to be scheduled
-- Result: the number of jobs, the lane of each, and the earliest due time that remains in `scheduled`
-- Locks: the rows that it moves; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.promote_due_1(
    p_now int8, p_limit int4, p_low_water_mark int8, OUT moved int4, OUT lanes int4[], OUT next_due int8
) LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
BEGIN
    IF p_low_water_mark > p_now THEN  -- the clock was set back
        p_low_water_mark := {schema}.get_lowest_time_1();
    END IF;
    moved := 0;
    SELECT s.due INTO next_due FROM {schema}.scheduled s WHERE s.due >= p_low_water_mark ORDER BY s.due, s.seq LIMIT 1;
    IF next_due IS NULL OR next_due > p_now OR p_limit <= 0 THEN
        RETURN;
    END IF;
    WITH due_jobs AS (
        DELETE FROM {schema}.scheduled WHERE ctid = ANY (ARRAY(
            SELECT s.ctid FROM {schema}.scheduled s WHERE s.due >= p_low_water_mark AND s.due <= p_now
            ORDER BY s.due, s.seq LIMIT p_limit FOR UPDATE SKIP LOCKED
        )) RETURNING due, seq, lane, attempt_status
    ), promoted AS (
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        SELECT due, seq, lane, attempt_status FROM due_jobs
        RETURNING lane
    )
    SELECT count(*), array_agg(lane) INTO moved, lanes FROM promoted;
    SELECT s.due INTO next_due FROM {schema}.scheduled s WHERE s.due >= p_low_water_mark ORDER BY s.due, s.seq LIMIT 1;
END $$;

-- name: list_queues_of_left_jobs
-- List the queues of the jobs that an exchange promoted and did not lease.
-- Inputs: the lane of each promoted job; the number of the session; the number of the exchange
-- Result: the queue of each job, at most 1000 times; NULL: none
CREATE OR REPLACE FUNCTION {schema}.list_queues_of_left_jobs_1(p_lanes int4[], p_session int4, p_number int8) RETURNS text[]
LANGUAGE sql AS $$
    SELECT array_agg(counted.queue)
    FROM (
        SELECT a.queue, LEAST(sum(c.jobs), 1000) AS jobs
        FROM (
            SELECT p.lane, 1 AS jobs FROM unnest(p_lanes) p (lane)
            UNION ALL
            SELECT l.lane, -1 FROM {schema}.lease l WHERE l.session = p_session AND l.exchange_number = p_number
        ) c JOIN {schema}.lane a ON a.id = c.lane GROUP BY a.queue
    ) counted CROSS JOIN LATERAL generate_series(1, counted.jobs)
$$;

-- name: report_due
-- Decide whether an exchange reports a due time to its session, and note that it was reported.
-- Inputs: the time; the number of the session; the earliest due time in `scheduled`
-- Result: the due time; NULL: another session looks for jobs by then
-- Locks: the row of `reported_due`; if another transaction has locked it, both report a due time, and two sessions may look
CREATE OR REPLACE FUNCTION {schema}.report_due_1(p_now int8, p_session int4, p_due int8) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    SELECT r.due, r.session, EXISTS (
        SELECT FROM {schema}.session s WHERE s.number = r.session AND s.ended_at IS NULL
    ) AS looks INTO last FROM {schema}.reported_due r;
    IF last.session = p_session AND last.due = p_due THEN
        RETURN p_due;
    ELSIF last.session <> p_session AND last.looks AND last.due > p_now AND last.due <= p_due THEN
        RETURN NULL;
    ELSIF last.due IS NULL THEN
        INSERT INTO {schema}.reported_due (due, session) VALUES (p_due, p_session) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE {schema}.reported_due SET due = p_due, session = p_session WHERE one = (
            SELECT r.one FROM {schema}.reported_due r WHERE r.due = last.due AND r.session = last.session
            FOR UPDATE SKIP LOCKED
        );
    END IF;
    RETURN p_due;
END $$;

-- name: read_open_lanes
-- Read the first job of each requested lane of jobs without a tenant.
-- Inputs: as for `exchange_1`; whether any queue is paused, whose lanes are left out
-- Result: arrays with one element for each lane:
--   ids                           its number
--   main_lanes                    for a late lane the number of its main lane, else its own number
--   request_indexes               the index of the requested lane that it belongs to
--   ranks, levels                 its rank; the level of its queue (NULL: no levels are given)
--   low_water_marks               the due time from which to read it: that of its first job, so that deleted rows are read once.
--                                 Marks are ignored for late lanes, and if the clock was set back.
--   queues, names                 its queue and name
--   head_dues                     the due time of its first job; NULL: it is empty
-- One short statement costs less than several (decision 0004).
CREATE OR REPLACE FUNCTION {schema}.read_open_lanes_1(
    p_now int8, p_queues text[], p_names text[], p_levels int8[], p_low_water_lanes int4[], p_low_water_marks int8[],
    p_has_pauses bool, OUT ids int4[], OUT main_lanes int4[], OUT request_indexes int4[], OUT ranks int2[], OUT levels int8[],
    OUT low_water_marks int8[], OUT queues text[], OUT names text[], OUT head_dues int8[]
) LANGUAGE plpgsql AS $$
BEGIN
    IF p_queues = '{}' THEN
        RETURN;
    END IF;
    SELECT array_agg(lane.id), array_agg(lane.main_lane), array_agg(lane.place), array_agg(lane.rank), array_agg(lane.level),
        array_agg(coalesce(lane.due, lane.low_water_mark)), array_agg(lane.queue), array_agg(lane.name), array_agg(lane.due)
    INTO ids, main_lanes, request_indexes, ranks, levels, low_water_marks, queues, names, head_dues
    FROM (
        SELECT known.*, (
            SELECT r.due FROM {schema}.ready r WHERE r.lane = known.id AND r.due >= known.low_water_mark
            ORDER BY r.due, r.seq LIMIT 1
        ) AS due  -- OFFSET 0 below: it is read once, although two results need it
        FROM (
            SELECT l.id, coalesce(l.main_lane, l.id) AS main_lane, CAST(requested.place AS int4) AS place, l.rank,
                requested.level, l.queue, l.name,
                CASE WHEN l.is_late OR mark.low_water_mark <= p_now IS NOT TRUE THEN {schema}.get_lowest_time_1()
                    ELSE mark.low_water_mark END AS low_water_mark
            FROM unnest(p_queues, p_names, p_levels) WITH ORDINALITY AS requested (queue, name, level, place)
            CROSS JOIN LATERAL (
                SELECT * FROM {schema}.lane l
                WHERE l.queue = requested.queue AND l.name = requested.name AND l.tenant = '' OFFSET 0
            ) l
            CROSS JOIN LATERAL (SELECT width_bucket(l.id, p_low_water_lanes) AS place OFFSET 0) found
            CROSS JOIN LATERAL (
                SELECT CASE WHEN p_low_water_lanes[found.place] = l.id THEN p_low_water_marks[found.place] END
                    AS low_water_mark OFFSET 0
            ) mark
            WHERE NOT p_has_pauses OR NOT {schema}.is_paused_1(p_now, requested.queue) OFFSET 0
        ) known OFFSET 0
    ) lane;
END $$;

-- name: read_lane_head
-- Read the due time of the first job of a lane.
-- Inputs: the lane; a due time before which it is known to be empty
-- Result: the due time; NULL: it is empty
CREATE OR REPLACE FUNCTION {schema}.read_lane_head_1(p_lane int4, p_low_water_mark int8) RETURNS int8
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT r.due FROM {schema}.ready r WHERE r.lane = p_lane AND r.due >= p_low_water_mark ORDER BY r.due, r.seq LIMIT 1
    );
END $$;

-- name: read_lane_heads_again
-- Read the earliest due times of lanes again after jobs were taken from them, until enough lanes are known to hold jobs for a
-- reply (MAX_WAITING_LANES in core/exchange.py). The other lanes keep what was read: their jobs are not due earlier.
-- Inputs: the open lanes, and their earliest due times (NULL: empty); the lanes from which a merge took jobs; for each a due
--   time before which it is known to be empty, and the number of jobs
-- Result: the due times of the open lanes
CREATE OR REPLACE FUNCTION {schema}.read_lane_heads_again_1(
    p_ids int4[], p_head_dues int8[], p_taken_ids int4[], p_low_water_marks int8[], p_counts int4[]
) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    head_dues int8[] := p_head_dues;
    head int8;
    waiting int4 := cardinality(array_remove(p_head_dues, NULL)) - cardinality(array_remove(p_counts, 0));
BEGIN
    FOR i IN 1..cardinality(p_taken_ids) LOOP
        EXIT WHEN waiting >= 64;
        CONTINUE WHEN p_counts[i] = 0;
        head := {schema}.read_lane_head_1(p_taken_ids[i], p_low_water_marks[i]);
        head_dues[array_position(p_ids, p_taken_ids[i])] := head;
        IF head IS NOT NULL THEN
            waiting := waiting + 1;
        END IF;
    END LOOP;
    RETURN head_dues;
END $$;

-- name: find_first_lanes
-- Find the lanes that hold the first jobs of a merge: a job of another lane comes after `p_total` first jobs of lanes. If
-- lanes of one name and queue differ in their priorities, all lanes that hold jobs. Up to eight lanes stay as they are.
-- Inputs: the maximum number of jobs; the time; the ageing span (0: no ageing); whether a requested lane has several of the open
--   lanes; the open lanes as `read_open_lanes_1` returns them, and their earliest due times (NULL: empty)
-- Result: the same for these lanes
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION {schema}.find_first_lanes_1(
    p_total int4, p_now int8, p_ageing int8, p_is_mixed bool, p_ids int4[], p_main_lanes int4[], p_request_indexes int4[],
    p_ranks int2[], p_levels int8[], p_low_water_marks int8[], p_queues text[], p_names text[], p_head_dues int8[],
    OUT ids int4[], OUT main_lanes int4[], OUT request_indexes int4[], OUT ranks int2[], OUT levels int8[],
    OUT low_water_marks int8[], OUT queues text[], OUT names text[]
) LANGUAGE plpgsql AS $$
DECLARE
    most int4 := CASE WHEN p_is_mixed THEN 2147483647 ELSE p_total END;
BEGIN
    IF cardinality(p_ids) <= 8 THEN  -- then a merge of all of them takes no longer
        SELECT p_ids, p_main_lanes, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_queues, p_names
        INTO ids, main_lanes, request_indexes, ranks, levels, low_water_marks, queues, names;
        RETURN;
    END IF;
    SELECT array_agg(lane.id), array_agg(lane.main_lane), array_agg(lane.request_index), array_agg(lane.rank),
        array_agg(lane.level), array_agg(lane.low_water_mark), array_agg(lane.queue), array_agg(lane.name)
    INTO ids, main_lanes, request_indexes, ranks, levels, low_water_marks, queues, names
    FROM (
        SELECT l.*, rank() OVER (ORDER BY
            -l.level - CASE WHEN p_ageing > 0 AND p_now > l.due THEN (p_now - l.due) / p_ageing ELSE 0 END, l.rank, l.due
        ) AS place
        FROM unnest(p_ids, p_main_lanes, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_queues, p_names, p_head_dues)
            AS l (id, main_lane, request_index, rank, level, low_water_mark, queue, name, due)
        WHERE l.due IS NOT NULL
    ) lane
    WHERE lane.place <= most;
END $$;

-- name: plan_claims
-- Compute how many jobs to take from each lane, so that together they are the first ones in the order of the merge.
-- Inputs:
--   p_total                       the maximum number of jobs
--   p_now                         the time
--   p_ageing                      the ageing span in microseconds; 0: no ageing
--   p_is_mixed                    whether a requested lane has several of the open lanes
--   p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks
--                                 the open lanes: their arrays in `exchange_1`
-- Result: a number for each open lane
-- Locks: none; it reads snapshots. Locked candidates would be hidden from other workers.
-- Atomic: a read. The caller then takes that many jobs and skips the ones that another transaction has locked.
CREATE OR REPLACE FUNCTION {schema}.plan_claims_1(
    p_total int4, p_now int8, p_ageing int8, p_is_mixed bool, p_ids int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[]
) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    chunks int4[] := array_fill(
        LEAST(p_total, p_total / cardinality(p_ids) + 2), ARRAY[cardinality(p_ids)]);
    counts int4[];
    incomplete int4[];
    taken record;
BEGIN
    LOOP
        counts := array_fill(0, ARRAY[cardinality(p_ids)]);
        incomplete := NULL;
        FOR taken IN
            SELECT merged.lane_index, count(*) AS jobs,
                count(*) = chunks[merged.lane_index] AND max(merged.place) < p_total AS is_incomplete
            FROM (
                SELECT * FROM {schema}.merge_jobs_1(p_now, p_ageing, p_is_mixed, p_ids, p_request_indexes, p_ranks, p_levels,
                    p_low_water_marks, chunks) LIMIT p_total
            ) merged GROUP BY merged.lane_index
        LOOP
            counts[taken.lane_index] := taken.jobs;
            IF taken.is_incomplete THEN
                incomplete := incomplete || taken.lane_index;
            END IF;
        END LOOP;
        EXIT WHEN incomplete IS NULL;
        FOR i IN 1..cardinality(incomplete) LOOP
            chunks[incomplete[i]] := LEAST(2 * chunks[incomplete[i]], p_total + 1);
        END LOOP;
    END LOOP;
    RETURN counts;
END $$;

-- name: merge_jobs
-- Merge the first jobs of several lanes in the order of delivery.
-- A job is ranked by the worst key between the front of its lane and the job itself (decision 0001). If no requested lane has several
-- of the lanes, that is its own key: the jobs of a lane have one rank, and a job that is due later has no higher level.
-- Inputs: the time; the ageing span (0: no ageing); whether a requested lane has several of the open lanes; the open lanes: their
--   arrays in `exchange_1`; how many jobs of each to read
-- Result: one row for each job, in order:
--   place, lane_index              its place; the index of its lane
CREATE OR REPLACE FUNCTION {schema}.merge_jobs_1(
    p_now int8, p_ageing int8, p_is_mixed bool, p_ids int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[],
    p_low_water_marks int8[], p_chunks int4[]
) RETURNS TABLE (place int8, lane_index int4)
LANGUAGE sql STABLE AS $$
    WITH candidate AS MATERIALIZED (
        SELECT CAST(lane.lane_index AS int4) AS lane_index, lane.request_index, lane.rank, r.due, r.seq,
            -lane.level - CASE WHEN p_ageing > 0 AND p_now > r.due THEN (p_now - r.due) / p_ageing ELSE 0 END AS level
        FROM unnest(p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_chunks) WITH ORDINALITY
            AS lane (id, request_index, rank, level, low_water_mark, chunk, lane_index),
        LATERAL (
            SELECT r.due, r.seq FROM {schema}.ready r
            WHERE r.lane = lane.id AND r.due >= lane.low_water_mark
            ORDER BY r.due, r.seq LIMIT lane.chunk
        ) r
    ), ranked AS (
        SELECT c.lane_index, max(ARRAY[c.level, c.rank, c.due, c.seq]) OVER (
                PARTITION BY c.request_index ORDER BY c.rank, c.due, c.seq ROWS UNBOUNDED PRECEDING
            ) AS worst, NULL AS level, c.rank, c.due, c.seq
        FROM candidate c WHERE p_is_mixed
        UNION ALL
        SELECT c.lane_index, NULL, c.level, c.rank, c.due, c.seq FROM candidate c WHERE NOT p_is_mixed
    )
    SELECT row_number() OVER (ORDER BY r.worst, r.level, r.rank, r.due, r.seq), r.lane_index FROM ranked r ORDER BY 1
$$;

-- name: skip_lanes
-- Move the low-water marks of lanes behind all jobs, so that a merge is planned without them.
-- Inputs: the marks; how many jobs were planned of each lane: those with any are skipped
-- Result: the marks
CREATE OR REPLACE FUNCTION {schema}.skip_lanes_1(p_low_water_marks int8[], p_counts int4[]) RETURNS int8[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT CASE WHEN u.planned > 0 THEN 9223372036854775807 ELSE u.mark END
        FROM unnest(p_counts, p_low_water_marks) WITH ORDINALITY AS u (planned, mark, place) ORDER BY u.place
    );
END $$;

-- name: lease_jobs
-- Lease jobs of a lane to a session, and return them.
-- Inputs: the time; the session; its exchange and nonce; the main lane; the rows of the jobs in `ready`; the numbers of the keys for
--   which all of them count (NULL: none); if each counts for keys of its own, their seqs in ascending order, the numbers of the keys as from `count_open_keys_1`, and how many limits there are
-- Result: one row of arrays, as of `exchange_1`; none if no job is left
-- `width_bucket` finds the place of a job in the array of the seqs.
CREATE OR REPLACE FUNCTION {schema}.lease_jobs_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_main_lane int4, p_ctids tid[], p_lane_numbers int8[],
    p_seqs int8[], p_key_numbers int8[], p_limits int4
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY (p_ctids)
        RETURNING r.due, r.seq, r.attempt_status,
            CASE WHEN r.attempt_status > 0 THEN {schema}.get_attempt_state_1(r.seq) END AS attempts,
            CASE WHEN p_limits > 0 THEN width_bucket(r.seq, p_seqs) END AS place
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
            failures, lost, attempt_status, extra_flags, nonce, settled_token, key_numbers)
        SELECT t.seq, t.due, p_now, p_number, p_session, p_main_lane, 1, coalesce((t.attempts).fence, 0) + 1,
            coalesce((t.attempts).failures, 0), coalesce((t.attempts).lost, 0), t.attempt_status,
            coalesce((t.attempts).extra_flags, 0::int2), p_nonce, (t.attempts).settled_token,
            CASE WHEN p_limits > 0 THEN nullif(p_lane_numbers || array_remove(
                p_key_numbers[(t.place - 1) * p_limits + 1:t.place * p_limits], NULL), '{}') ELSE p_lane_numbers END
        FROM taken t
    )
    SELECT CAST(NULL AS int4[]), array_agg(j.seq), array_agg(coalesce((j.attempts).due, j.due)), array_agg(j.created_at),
        array_agg(j.lane), array_agg(coalesce((j.attempts).fence, 0) + 1) FILTER (WHERE t.attempted IS NOT NULL),
        array_agg(coalesce((j.attempts).failures, 0)) FILTER (WHERE t.attempted IS NOT NULL),
        array_agg(coalesce((j.attempts).lost, 0)) FILTER (WHERE t.attempted IS NOT NULL),
        array_agg(j.id), array_agg(j.options), array_agg(j.payload),
        array_agg(CASE WHEN (j.attempts).fence > 0 THEN {schema}.read_small_run_1(j.seq) END) FILTER (WHERE t.attempted IS NOT NULL),
        (CAST(NULL AS {schema}.exchange_status)).*
    FROM (
        SELECT array_agg(t.seq) AS seqs, array_agg(t.seq) FILTER (WHERE t.attempt_status > 0) AS attempted FROM taken t
    ) t CROSS JOIN LATERAL (
        SELECT j.*, CASE WHEN j.seq = ANY (t.attempted) THEN {schema}.get_attempt_state_1(j.seq) END AS attempts
        FROM {schema}.job j WHERE j.seq = ANY (t.seqs) OFFSET 0
    ) j HAVING count(*) > 0;
END $$;

-- name: lease_merged_jobs
-- Lease the first jobs of lanes to a session, and return them.
-- Inputs: the time; the session; its exchange and nonce; the ageing span; whether a requested lane has several of the open lanes; the
--   open lanes: their arrays in `exchange_1`; how many jobs to take from each; the maximum number of bytes of all deliveries (NULL: they fit)
-- Result: one row of arrays, as of `exchange_1`; `reply_positions` are the positions in the merge. Jobs beyond the maximum return
--   to their places in `ready`, but the first job is always delivered.
-- Locks: the rows of `ready` that it deletes; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.lease_merged_jobs_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_ageing int8, p_is_mixed bool, p_ids int4[],
    p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[], p_low_water_marks int8[],
    p_counts int4[], p_max_bytes int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        DELETE FROM {schema}.ready r USING (
            SELECT f.ctid, w.main_lane, w.request_index, w.rank, w.level
            FROM unnest(p_ids, p_main_lanes, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_counts)
                AS w (id, main_lane, request_index, rank, level, low_water_mark, most),
            LATERAL (
                SELECT r.ctid FROM {schema}.ready r WHERE r.lane = w.id AND r.due >= w.low_water_mark
                ORDER BY r.due, r.seq LIMIT w.most FOR UPDATE SKIP LOCKED
            ) f
            WHERE w.most > 0 OFFSET 0
        ) f WHERE r.ctid = f.ctid
        RETURNING r.lane, r.due, r.seq, r.attempt_status, f.main_lane, f.request_index, f.rank,
            -f.level - CASE WHEN p_ageing > 0 AND p_now > r.due THEN (p_now - r.due) / p_ageing ELSE 0 END AS level
    ), ranked AS (
        SELECT t.lane, t.due, t.seq, t.attempt_status, t.main_lane, t.rank, NULL AS level,
            max(ARRAY[t.level, t.rank, t.due, t.seq]) OVER (
                PARTITION BY t.request_index ORDER BY t.rank, t.due, t.seq ROWS UNBOUNDED PRECEDING
            ) AS worst
        FROM taken t WHERE p_is_mixed
        UNION ALL
        SELECT t.lane, t.due, t.seq, t.attempt_status, t.main_lane, t.rank, t.level, NULL FROM taken t WHERE NOT p_is_mixed
    ), placed AS (
        SELECT ranked.*, CASE WHEN ranked.attempt_status > 0 THEN {schema}.get_attempt_state_1(ranked.seq) END AS attempts,
            CAST(row_number() OVER o AS int4) AS place, j.created_at, j.lane AS at_first, j.id, j.options,
            j.payload, CASE WHEN p_max_bytes IS NOT NULL
                THEN sum({schema}.get_delivery_size_1(j.payload, j.options)) OVER o END AS bytes
        FROM ranked, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = ranked.seq OFFSET 0) j
        WINDOW o AS (ORDER BY ranked.worst, ranked.level, ranked.rank, ranked.due, ranked.seq)
    ), returned AS (
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        SELECT placed.due, placed.seq, placed.lane, placed.attempt_status FROM placed
            WHERE placed.bytes > p_max_bytes AND placed.place > 1
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
            failures, lost, attempt_status, extra_flags, nonce, settled_token)
        SELECT placed.seq, placed.due, p_now, p_number, p_session, placed.main_lane, placed.place,
            coalesce((placed.attempts).fence, 0) + 1,
            coalesce((placed.attempts).failures, 0), coalesce((placed.attempts).lost, 0), placed.attempt_status,
            coalesce((placed.attempts).extra_flags, 0::int2), p_nonce, (placed.attempts).settled_token
        FROM placed WHERE placed.bytes > p_max_bytes IS NOT TRUE OR placed.place = 1
    )
    SELECT array_agg(placed.place), array_agg(placed.seq), array_agg(placed.due), array_agg(placed.created_at),
        array_agg(placed.at_first), array_agg(coalesce((placed.attempts).fence, 0) + 1),
        array_agg(coalesce((placed.attempts).failures, 0)), array_agg(coalesce((placed.attempts).lost, 0)),
        array_agg(placed.id), array_agg(placed.options), array_agg(placed.payload),
        array_agg(CASE WHEN (placed.attempts).fence > 0 THEN {schema}.read_small_run_1(placed.seq) END),
        (CAST(NULL AS {schema}.exchange_status)).*
    FROM placed WHERE placed.bytes > p_max_bytes IS NOT TRUE OR placed.place = 1 HAVING count(*) > 0;
END $$;

-- name: get_attempt_state
-- Read the attempt state of a job that is not new.
-- Inputs: seq
-- Result: its row of `attempt_state`
-- Atomic: one read. It is a function so that the plan for new jobs does not contain it.
CREATE OR REPLACE FUNCTION {schema}.get_attempt_state_1(p_seq int8) RETURNS {schema}.attempt_state
LANGUAGE plpgsql STABLE AS $$
DECLARE
    attempts {schema}.attempt_state;
BEGIN
    SELECT * INTO attempts FROM {schema}.attempt_state a WHERE a.seq = p_seq;
    RETURN attempts;
END $$;

-- name: find_waiting_lanes
-- Find the requested lanes that still have jobs that may be leased.
-- Inputs: the time; queues and names of the requested lanes; lanes and their low-water marks
-- Result: indexes of requested lanes in ascending order; NULL: none
CREATE OR REPLACE FUNCTION {schema}.find_waiting_lanes_1(
    p_now int8, p_queues text[], p_names text[], p_low_water_lanes int4[], p_low_water_marks int8[]
) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    lanes record := {schema}.read_open_lanes_1(
        p_now, p_queues, p_names, NULL, p_low_water_lanes, p_low_water_marks, true);
    holding int4[];
BEGIN
    holding := ARRAY(SELECT l.place FROM unnest(lanes.request_indexes, lanes.head_dues) AS l (place, due) WHERE l.due IS NOT NULL);
    RETURN (
        SELECT array_agg(CAST(w.place AS int4) ORDER BY w.place)
        FROM unnest(p_queues, p_names) WITH ORDINALITY AS w (queue, name, place)
        WHERE (w.place = ANY (holding) OR NOT {schema}.is_paused_1(p_now, w.queue) AND EXISTS (
            SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name
                AND EXISTS (SELECT FROM {schema}.ready z WHERE z.lane = t.lane OFFSET 0) OFFSET 0
        )) AND (({schema}.read_lane_limits_1(p_now, w.queue, w.name)).room > 0) IS NOT FALSE
    );
END $$;

-- name: repeat_exchange
-- Return the jobs that an exchange leased.
-- Inputs: the session; the number of the exchange
-- Result: one row of arrays, as of `exchange_1`; none if no lease is left
CREATE OR REPLACE FUNCTION {schema}.repeat_exchange_1(p_session int4, p_number int8) RETURNS SETOF {schema}.exchange_reply
LANGUAGE sql STABLE AS $$
    SELECT array_agg(l.reply_position), array_agg(l.seq), array_agg(l.due), array_agg(j.created_at), array_agg(l.lane),
        array_agg(l.fence), array_agg(l.failures), array_agg(l.lost), array_agg(j.id), array_agg(j.options), array_agg(j.payload),
        array_agg(CASE WHEN l.fence > 1 THEN {schema}.read_small_run_1(l.seq) END), (CAST(NULL AS {schema}.exchange_status)).*
    FROM {schema}.lease l JOIN {schema}.job j ON j.seq = l.seq
    WHERE l.session = p_session AND l.exchange_number = p_number
    HAVING count(*) > 0
$$;

-- name: release_excess
-- Release the jobs of an exchange that do not fit in the reply of its repetition.
-- Inputs: the time; the session; the number of the exchange; the maximum number of bytes of all deliveries
-- Result: the lanes of the released jobs; NULL: none
-- Locks: the limits of these jobs, in one statement; the durable runs to which a cancel was requested; then rows of jobs
-- Atomic: part of the caller's transaction. No loss is counted. A job that is to be cancelled ends.
CREATE OR REPLACE FUNCTION {schema}.release_excess_1(p_now int8, p_session int4, p_number int8,
    p_max_bytes int8) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    held {schema}.lease;
    ended int4[];
    key_numbers int8[];
BEGIN
    PERFORM {schema}.lock_cancelled_runs_1(ARRAY(
        SELECT l.seq FROM {schema}.lease l WHERE l.session = p_session AND l.exchange_number = p_number AND l.cancel_requested
    ));
    FOR held IN
        DELETE FROM {schema}.lease l WHERE l.session = p_session AND l.seq = ANY (ARRAY(
            SELECT x.seq FROM (
                SELECT l.seq, row_number() OVER o AS n, sum({schema}.get_delivery_size_1(j.payload,
                    j.options)) OVER o AS bytes
                FROM {schema}.lease l JOIN {schema}.job j ON j.seq = l.seq
                WHERE l.session = p_session AND l.exchange_number = p_number
                WINDOW o AS (ORDER BY l.reply_position, l.due, l.seq)
            ) x WHERE x.bytes > p_max_bytes AND x.n > 1
        )) RETURNING l.*
    LOOP
        PERFORM {schema}.requeue_1(p_now, held, {schema}.end_lease_1(p_now, held, NULL));
        ended := ended || held.lane;
        key_numbers := key_numbers || held.key_numbers;
        PERFORM {schema}.refund_keys_1(p_now, held);
    END LOOP;
    IF ended IS NOT NULL THEN
        PERFORM {schema}.release_keys_1(p_now, key_numbers);
    END IF;
    RETURN ended;
END $$;

-- name: get_lanes_of_exchange
-- Return the lanes of the jobs that an exchange leased.
-- Inputs: the session; the number of the exchange
-- Result: arrays of numbers, ranks, queues and names
CREATE OR REPLACE FUNCTION {schema}.get_lanes_of_exchange_1(
    p_session int4, p_number int8, OUT main_lanes int4[], OUT ranks int2[], OUT queues text[],
    OUT names text[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(a.id), array_agg(a.rank), array_agg(a.queue), array_agg(a.name)
    INTO main_lanes, ranks, queues, names
    FROM {schema}.lane a WHERE a.id = ANY (ARRAY(
        SELECT l.lane FROM {schema}.lease l WHERE l.session = p_session AND l.exchange_number = p_number
    ));
END $$;

-- name: get_delivery_size
-- Return the number of bytes that a job counts in a reply (`ReserveRequest.max_bytes`; 256 is DELIVERY_OVERHEAD).
-- Inputs: payload and options of the job
-- Result: the number of bytes
-- Atomic: reads nothing, not even payloads that are stored outside their rows
CREATE OR REPLACE FUNCTION {schema}.get_delivery_size_1(p_payload bytea, p_options text) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT CAST(256 + octet_length(p_payload) + coalesce(octet_length(p_options), 0) AS int8)
$$;
