-- Exchange: settle jobs, promote due jobs, reserve jobs. Workers call it for every batch.
--
-- Atomic: one transaction. Exchanges are numbered, so that a repeated call gets the same reply. The commit is
-- asynchronous: a server that crashes may lose an exchange. Jobs are then repeated, but none is lost.
-- Locks: the advisory lock of the session; `concurrency_limit` and `paused_queue` in ROW SHARE; limits by name; unique
-- keys; then rows of `ready` with SKIP LOCKED. Candidates are counted without locks first (`plan_claims`), because other
-- workers skip locked candidates.
-- Low-water marks (`p_low_water_marks`): a lane is read from a due time before which it is known to be empty (decision
-- 0004). Functions receive and return lists as arrays of the same length, one element for each lane or job.
-- Rarely needed data (attempt state, history, progress) is read by separate functions, to keep it out of the hot plans.

-- name: exchange
-- Settle finished jobs, promote due jobs, and lease jobs to a session.
--
-- The body has six steps. Parameters are flat arrays, because the driver encodes them faster than rows.
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
--   p_caps                      the maximum number of jobs of that queue; NULL: no maximum
--   p_max_bytes                 the maximum number of bytes of all deliveries
--   p_low_water_lanes, p_low_water_marks
--                               lanes in ascending order, and for each the due time before which it is known to be empty.
--                               `width_bucket` finds the place of a lane: the time does not grow with the square of the lanes.
--   p_scheduled_low_water_mark  the same for `scheduled`
--
-- Result: one row for each leased job, then one status row. A row of one kind has NULL in the columns of the other.
--   Columns of a leased job:
--     reply_position            its position in the reply, from 1. Jobs of the same lane may share a position; they are
--                               ordered by due time and seq.
--     seq, due, created_at, lane, fence, failures, lost, id, options, payload
--                               the job and its lease
--   Columns of the status row:
--     outcome                   ok: the exchange was applied or repeated; session_lost: the session is not alive;
--                               out_of_order: another number is expected. Only for ok the other columns have values.
--     last_number               of out_of_order: the number of the last exchange
--     now                       the time of the exchange
--     results                   one letter for each settlement: d done, a already settled by this token, s stale
--     nonce                     the nonce of the leases in this reply
--     next_due                  the earliest due time in `scheduled`, unless another session looks then, or when a rate
--                               limit allows the next job of a requested lane, if that is earlier; NULL: neither
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
-- Locks: the advisory lock of the session; limits by name; unique keys; then the rows of jobs
-- Atomic: one transaction with an asynchronous commit
CREATE OR REPLACE FUNCTION {schema}.exchange_1(
    p_now int8, p_session text, p_number int8,
    -- settlements
    p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[],
    p_texts text[], p_fractions float8[],
    -- request
    p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[], p_levels int8[], p_caps int4[],
    p_max_bytes int8,
    -- low-water marks
    p_low_water_lanes int4[], p_low_water_marks int8[], p_scheduled_low_water_mark int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
DECLARE
    first_reading int8;
    now int8;
    session record;
    is_new bool;
    uses_features bool;  -- whether limits, tenants or pauses were ever used
    has_limits bool := false;
    has_keys bool := false;
    has_tenants bool := false;
    has_pauses bool := false;
    check_sizes bool;
    locked_names text[];
    changed_seqs int8[];
    codes text := '';
    nonce bytea := p_nonce;
    settled record;
    to_notify int4[];
    next_due int8;
    promoted record;
    promoted_lanes int4[];
    first_dues int8[];
    lane_index int4;
    is_plain bool;  -- whether no limits, tenants or pauses are in force
    open_lanes record;
    lanes record;  -- the open lanes from which a merge takes jobs
    counts int4[];
    closed bool[];  -- requested lanes in which a bound left jobs to the next exchange; see `plan_keyed_claims_1`
    planned record;
    queues_to_notify text[];
    changing bool[];  -- requested lanes to which parked jobs still return; NULL: none
    limits_changed bool := true;  -- whether limits may have changed; true until step 4 has looked
    has_turns bool := false;
    turn_lanes int4[];
    has_more_turns bool := false;
    is_planned bool := false;
    positions int4[];
    leased_count int8;
    any_attempted bool;
    leased_all bool;  -- whether all planned jobs were leased; NULL: the claim has returned its jobs already
    ids int4[];
    low_water_marks int8[];
    head_dues int8[];
    waiting int4[];
    main_lanes int4[];
    ranks int2[];
    queues text[];
    names text[];
BEGIN
    -- Step 1: lock the session and read the clock.
    IF set_config('synchronous_commit', 'off', true) IS NULL
        OR pg_advisory_xact_lock(hashtextextended(p_session, 7041)) IS NULL
    THEN  -- never true: an IF costs less than a statement
        RETURN;
    END IF;
    LOCK TABLE {schema}.concurrency_limit, {schema}.paused_queue IN ROW SHARE MODE;
    -- The first reading comes before this transaction has a number.
    first_reading := CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8);
    now := {schema}.get_write_time_1(p_now);

    -- Step 2: read the session, its last exchange, and what decides how the later steps work. Short statements cost less
    -- than one with many scans (decision 0004).
    SELECT s.number, last.number AS last_number, last.results, last.nonce,
        pg_snapshot_xmin(pg_current_snapshot())::text::int8 AS oldest_xid
    INTO session
    FROM {schema}.session s LEFT JOIN LATERAL (
        SELECT * FROM {schema}.exchange_log e WHERE e.session = s.number ORDER BY e.number DESC LIMIT 1
    ) last ON true
    WHERE s.id = p_session AND s.ended_at IS NULL AND s.left_at IS NULL;
    IF NOT FOUND THEN
        RETURN NEXT {schema}.make_status_reply_1('session_lost', NULL);
        RETURN;
    END IF;
    is_new := p_number = coalesce(session.last_number, 0) + 1;
    IF NOT is_new AND (session.last_number IS NULL OR p_number <> session.last_number) THEN
        RETURN NEXT {schema}.make_status_reply_1('out_of_order', coalesce(session.last_number, 0));
        RETURN;
    END IF;
    next_due := (
        SELECT z.due FROM {schema}.scheduled z
        WHERE z.due >= CASE WHEN p_scheduled_low_water_mark <= now THEN p_scheduled_low_water_mark
            ELSE {schema}.get_lowest_time_1() END
        ORDER BY z.due, z.seq LIMIT 1
    );
    uses_features := EXISTS (SELECT FROM {schema}.used_feature);
    IF uses_features THEN
        has_limits := EXISTS (SELECT FROM {schema}.concurrency_limit) OR EXISTS (SELECT FROM {schema}.rate_limit);
        has_keys := EXISTS (SELECT FROM {schema}.keyed_limit) OR EXISTS (SELECT FROM {schema}.limit_key);
        IF NOT has_keys THEN
            has_keys := EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key);
        END IF;
        has_tenants := EXISTS (SELECT FROM {schema}.tenant_turn)
            OR EXISTS (SELECT FROM {schema}.lease l WHERE l.share IS NOT NULL);
        has_pauses := EXISTS (SELECT FROM {schema}.paused_queue p WHERE p.ends_at IS NULL OR p.ends_at > now);
    END IF;

    -- Step 3: lock the limits that this exchange may change.
    IF has_limits OR has_keys THEN
        changed_seqs := p_seqs;
        IF NOT is_new THEN  -- some of the leased jobs may return to `ready`
            changed_seqs := ARRAY(
                SELECT l.seq FROM {schema}.lease l WHERE l.session = session.number AND l.exchange_number = p_number
            );
        END IF;
        locked_names := {schema}.lock_affected_limits_1(
            now, session.number, changed_seqs, p_queues, p_names, p_low_water_lanes, p_low_water_marks);
    END IF;

    IF has_tenants THEN
        PERFORM {schema}.lock_floors_1(p_queues, session.number, p_seqs);
    END IF;

    -- Step 4: settle and promote. A repeated exchange only releases what no longer fits in the reply.
    IF NOT is_new THEN
        codes := session.results;
        nonce := session.nonce;
        to_notify := {schema}.release_excess_1(now, session.number, p_number, p_max_bytes);
    ELSE
        IF p_seqs IS NOT NULL THEN
            IF cardinality(p_fences) = 1 THEN
                p_fences := array_fill(p_fences[1], ARRAY[cardinality(p_seqs)]);
            END IF;
            IF has_tenants THEN
                PERFORM {schema}.settle_charges_1(now, session.number, p_seqs, p_kinds, p_fences, p_nonces);
            END IF;
            IF p_kinds IS NULL THEN
                settled := {schema}.complete_all_1(
                    now, session.number, p_seqs, p_fences, p_nonces, p_bodies, p_texts);
                codes := repeat('d', cardinality(p_seqs));
                IF settled.keyed IS NOT NULL THEN
                    to_notify := {schema}.free_unique_keys_1(settled.keyed, settled.keyed_lanes, settled.keys);
                END IF;
            ELSE
                settled := {schema}.settle_each_1(now, session.number, p_kinds, p_seqs, p_ids, p_fences, p_nonces,
                    p_bodies, p_delays, p_texts, p_fractions);
                codes := settled.codes;
                to_notify := settled.to_notify;
            END IF;
            IF has_limits THEN
                to_notify := to_notify || {schema}.release_limits_1(settled.ended);
            END IF;
            IF has_keys THEN
                queues_to_notify := {schema}.release_keys_1(now, settled.key_numbers);
            END IF;
        END IF;
        IF has_keys THEN
            PERFORM {schema}.unpark_open_1(now, p_names);
            limits_changed := EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key);
            IF limits_changed THEN
                queues_to_notify := queues_to_notify || {schema}.unpark_changed_1(now);
                changing := {schema}.find_changing_1(p_queues, p_names);
            END IF;
        END IF;
        IF p_kinds IS NOT NULL OR next_due <= now THEN  -- a retry may have added an earlier due time
            promoted := {schema}.promote_due_1(now, 1000, p_scheduled_low_water_mark);
            next_due := promoted.next_due;
            promoted_lanes := promoted.lanes;
        END IF;
        IF uses_features THEN
            has_turns := EXISTS (SELECT FROM {schema}.tenant_turn);
        END IF;
        IF has_turns THEN
            PERFORM {schema}.admit_turns_1(p_queues);  -- for jobs that were promoted or returned
        END IF;
    END IF;

    -- Step 5: lease the requested jobs, and find the lanes that still have jobs.
    IF cardinality(p_queues) > 0 OR NOT is_new THEN
        is_plain := NOT (has_limits OR has_keys OR has_pauses OR has_turns);
        IF is_plain THEN  -- `find_open_lanes_1` and `read_lane_heads_1` in one statement
            SELECT array_agg(lane.id) AS ids, array_agg(lane.main_lane) AS main_lanes,
                array_agg(lane.place) AS request_indexes, array_agg(lane.rank) AS ranks, array_agg(lane.level) AS levels,
                array_agg(lane.low_water_mark) AS low_water_marks, CAST(NULL AS int4[]) AS available,
                array_agg(lane.queue) AS queues, array_agg(lane.name) AS names, array_agg(lane.due) AS head_dues
            INTO open_lanes
            FROM (
                SELECT known.*, (
                    SELECT r.due FROM {schema}.ready r WHERE r.lane = known.id AND r.due >= known.low_water_mark
                    ORDER BY r.due, r.seq LIMIT 1
                ) AS due
                FROM (
                    SELECT l.id, coalesce(l.main_lane, l.id) AS main_lane, CAST(requested.place AS int4) AS place, l.rank,
                        requested.level, l.queue, l.name,
                        CASE WHEN l.is_late OR mark.low_water_mark <= now IS NOT TRUE THEN {schema}.get_lowest_time_1()
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
                    OFFSET 0
                ) known
            ) lane;
            ids := open_lanes.ids;
            head_dues := open_lanes.head_dues;
        ELSE
            open_lanes := {schema}.find_open_lanes_1(
                now, p_queues, p_names, p_levels, locked_names, p_low_water_lanes, p_low_water_marks);
            ids := open_lanes.ids;
            head_dues := {schema}.read_lane_heads_1(ids, open_lanes.low_water_marks);
        END IF;
        first_dues := array_remove(head_dues, NULL);
        IF is_plain AND cardinality(first_dues) = 1 THEN
            lane_index := array_position(head_dues, first_dues[1]);
        END IF;
        IF NOT is_new THEN
            RETURN QUERY SELECT * FROM {schema}.repeat_exchange_1(session.number, p_number);
            IF FOUND THEN
                SELECT * INTO main_lanes, ranks, queues, names
                FROM {schema}.get_lanes_of_exchange_1(session.number, p_number);
            END IF;
        ELSIF p_total > 0 AND (has_turns OR first_dues <> '{}') THEN
            check_sizes := p_total > 1 AND (p_total * 4096::int8 > p_max_bytes OR (
                SELECT pg_relation_size(c.reltoastrelid) > 0 FROM pg_class c WHERE c.oid = CAST('{schema}.job' AS regclass)
            ));
            IF lane_index IS NOT NULL AND NOT check_sizes THEN  -- one lane has jobs: as `claim_jobs_1`, without a merge
                RETURN QUERY
                WITH taken AS (
                    DELETE FROM {schema}.ready r WHERE r.ctid = ANY (ARRAY(
                        SELECT r.ctid FROM {schema}.ready r
                        WHERE r.lane = ids[lane_index] AND r.due >= open_lanes.low_water_marks[lane_index]
                        ORDER BY r.due, r.seq
                        LIMIT GREATEST(0, LEAST(p_total, p_caps[open_lanes.request_indexes[lane_index]]))
                        FOR UPDATE SKIP LOCKED
                    )) RETURNING r.due, r.seq, r.attempt_status,
                        CASE WHEN r.attempt_status > 0 THEN {schema}.get_attempt_state_1(r.seq) END AS attempts
                ), leased AS (
                    INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
                        failures, lost, attempt_status, extra_flags, nonce, settled_token)
                    SELECT t.seq, t.due, now, p_number, session.number, open_lanes.main_lanes[lane_index], 1,
                        coalesce((t.attempts).fence, 0) + 1, coalesce((t.attempts).failures, 0),
                        coalesce((t.attempts).lost, 0), t.attempt_status, coalesce((t.attempts).extra_flags, 0::int2), p_nonce,
                        (t.attempts).settled_token
                    FROM taken t
                )
                SELECT 1, j.seq, coalesce((j.attempts).due, j.due), j.created_at, j.lane, coalesce((j.attempts).fence, 0) + 1,
                    coalesce((j.attempts).failures, 0), coalesce((j.attempts).lost, 0), j.id, j.options, j.payload,
                    (CAST(NULL AS {schema}.exchange_status)).*
                FROM (
                    SELECT j.*, CASE WHEN j.seq = ANY (ARRAY(SELECT t.seq FROM taken t WHERE t.attempt_status > 0))
                        THEN {schema}.get_attempt_state_1(j.seq) END AS attempts
                    FROM {schema}.job j WHERE j.seq = ANY (ARRAY(SELECT t.seq FROM taken t)) OFFSET 0
                ) j;
                is_planned := true;
            ELSIF has_turns AND NOT has_limits AND NOT has_keys AND NOT has_pauses AND NOT check_sizes
                AND array_remove(p_caps, NULL) = '{}'
            THEN
                SELECT * INTO planned FROM {schema}.plan_plain_turns_1(
                    p_total, now, p_ageing, coalesce(ids, '{}'), open_lanes.main_lanes, open_lanes.request_indexes,
                    open_lanes.ranks, open_lanes.levels, open_lanes.low_water_marks, p_queues, p_names, p_levels
                );
                turn_lanes := planned.turn_lanes;
                has_more_turns := planned.has_more;
                PERFORM set_config('nimburion.moves_turns', 'on', true);
                SELECT l.leased, l.any_attempted INTO leased_count, any_attempted FROM {schema}.lease_planned_jobs_1(
                    now, session.number, p_number, p_nonce, planned.seqs, planned.dues, planned.lanes, planned.main_lanes, NULL,
                    NULL, NULL, NULL, NULL, planned.shares, planned.charges, NULL) l;
                PERFORM set_config('nimburion.moves_turns', '', true);
                leased_all := coalesce(leased_count = cardinality(planned.seqs), false);
                IF turn_lanes IS NOT NULL AND leased_count > 0 THEN
                    PERFORM {schema}.charge_turns_1(session.number, p_number, leased_all,
                        planned.seqs, planned.shares, planned.starts, planned.charges);
                END IF;
                is_planned := leased_count > 0 OR planned.seqs IS NULL;
            ELSIF has_keys AND NOT has_turns THEN
                SELECT * INTO planned FROM {schema}.plan_keyed_claims_1(
                    p_total, now, p_ageing, ids, open_lanes.main_lanes, open_lanes.request_indexes, open_lanes.ranks,
                    open_lanes.levels, open_lanes.low_water_marks, open_lanes.available, p_queues, p_names, p_caps, changing
                );
                closed := planned.closed;
                SELECT l.leased, l.any_attempted INTO leased_count, any_attempted FROM {schema}.lease_planned_jobs_1(
                    now, session.number, p_number, p_nonce, planned.seqs, planned.dues, planned.lanes, planned.main_lanes,
                    planned.positions, planned.ctids, planned.key_starts, planned.key_ends, planned.key_numbers, NULL, NULL,
                    CASE WHEN check_sizes THEN p_max_bytes END) l;
                positions := planned.positions;
                leased_all := coalesce(leased_count = cardinality(planned.seqs), false);
                is_planned := leased_count > 0 OR closed IS NOT NULL OR coalesce(planned.seqs, '{}') = '{}';
            ELSIF NOT has_turns THEN
                lanes := open_lanes;
                IF is_plain AND cardinality(ids) > 8 AND array_remove(p_caps, NULL) = '{}' THEN
                    lanes := {schema}.find_first_lanes_1(p_total, now, p_ageing, ids, open_lanes.main_lanes,
                        open_lanes.request_indexes, open_lanes.ranks, open_lanes.levels, open_lanes.low_water_marks,
                        open_lanes.queues, open_lanes.names, head_dues);
                END IF;
                low_water_marks := lanes.low_water_marks;
                LOOP
                    counts := {schema}.plan_claims_1(p_total, now, p_ageing, lanes.ids, lanes.request_indexes, lanes.ranks,
                        lanes.levels, low_water_marks, lanes.available, p_queues, p_names, p_caps);
                    IF check_sizes THEN
                        RETURN QUERY SELECT * FROM {schema}.claim_large_jobs_1(now, session.number, p_number, p_nonce,
                            p_ageing, lanes.ids, lanes.main_lanes, lanes.request_indexes, lanes.ranks, lanes.levels,
                            low_water_marks, counts, p_max_bytes);
                    ELSE
                        RETURN QUERY SELECT * FROM {schema}.claim_jobs_1(now, session.number, p_number, p_nonce, p_ageing,
                            lanes.ids, lanes.main_lanes, lanes.request_indexes, lanes.ranks, lanes.levels,
                            low_water_marks, counts);
                    END IF;
                    EXIT WHEN FOUND;
                    IF array_remove(counts, 0) <> '{}' THEN
                        -- Other transactions have locked all jobs of the planned lanes: plan again without these lanes.
                        low_water_marks := ARRAY(
                            SELECT CASE WHEN u.planned > 0 THEN 9223372036854775807 ELSE u.mark END
                            FROM unnest(counts, low_water_marks) WITH ORDINALITY AS u (planned, mark, place) ORDER BY u.place
                        );
                    ELSIF cardinality(lanes.ids) < cardinality(ids) THEN  -- then from the lanes behind them
                        lanes := open_lanes;
                        low_water_marks := lanes.low_water_marks;
                    ELSE
                        EXIT;
                    END IF;
                END LOOP;
                is_planned := true;
            END IF;
            IF NOT is_planned THEN  -- turns and limits apply, or other transactions have locked all planned jobs
                SELECT * INTO planned FROM {schema}.plan_turns_1(
                    p_total, now, session.number, p_number, p_nonce, p_ageing, ids, open_lanes.main_lanes, open_lanes.request_indexes,
                    open_lanes.ranks, open_lanes.levels, open_lanes.low_water_marks, p_queues, p_names, p_levels,
                    locked_names, p_caps, changing, CASE WHEN check_sizes THEN p_max_bytes END
                );
                closed := planned.closed;
                turn_lanes := planned.turn_lanes;
                PERFORM {schema}.lease_planned_jobs_1(now, session.number, p_number, p_nonce,
                    planned.seqs, planned.dues, planned.lanes, planned.main_lanes, NULL, NULL,
                    planned.key_starts, planned.key_ends, planned.key_numbers, NULL, NULL, NULL);
                leased_all := false;
                positions := NULL;
            END IF;
            IF leased_all AND NOT any_attempted AND positions IS NOT NULL THEN
                RETURN QUERY
                SELECT positions[row_number() OVER (ORDER BY j.seq)], j.seq, j.due, j.created_at, j.lane, 1, 0, 0, j.id,
                    j.options, j.payload, (CAST(NULL AS {schema}.exchange_status)).*
                FROM {schema}.job j WHERE j.seq = ANY (planned.seqs);
            ELSIF leased_all AND NOT any_attempted THEN
                RETURN QUERY
                SELECT CAST(u.place AS int4), j.seq, j.due, j.created_at, j.lane, 1, 0, 0, j.id, j.options,
                    j.payload, (CAST(NULL AS {schema}.exchange_status)).*
                FROM unnest(planned.seqs) WITH ORDINALITY AS u (seq, place),
                    LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = u.seq OFFSET 0) j;
            ELSIF leased_all IS NOT NULL THEN
                RETURN QUERY SELECT * FROM {schema}.repeat_exchange_1(session.number, p_number);
            END IF;
            IF FOUND THEN
                IF counts IS NULL THEN
                    lanes := open_lanes;
                END IF;
                main_lanes := lanes.main_lanes;
                ranks := lanes.ranks;
                queues := lanes.queues;
                names := lanes.names;
                IF turn_lanes IS NOT NULL THEN
                    SELECT main_lanes || array_agg(a.id), ranks || array_agg(a.rank), queues || array_agg(a.queue),
                        names || array_agg(a.name)
                    INTO main_lanes, ranks, queues, names FROM {schema}.lane a WHERE a.id = ANY (turn_lanes);
                END IF;
                IF lane_index IS NOT NULL THEN
                    head_dues[lane_index] := (
                        SELECT r.due FROM {schema}.ready r
                        WHERE r.lane = ids[lane_index] AND r.due >= open_lanes.low_water_marks[lane_index]
                        ORDER BY r.due, r.seq LIMIT 1
                    );
                ELSIF counts IS NOT NULL AND NOT has_keys THEN
                    head_dues := {schema}.read_lane_heads_again_1(ids, head_dues, lanes.ids, lanes.low_water_marks, counts);
                ELSIF NOT has_keys THEN
                    head_dues := {schema}.read_lane_heads_1(ids, open_lanes.low_water_marks);
                END IF;
                IF has_limits THEN
                    PERFORM {schema}.take_limits_1(now, session.number, p_number);
                END IF;
                IF has_keys THEN
                    PERFORM {schema}.count_keys_1(now, session.number, p_number, planned.key_seqs, planned.key_numbers,
                        planned.units, planned.spans, leased_all);
                END IF;
            END IF;
            IF has_keys THEN
                head_dues := {schema}.read_lane_heads_1(ids, open_lanes.low_water_marks);
            END IF;
        END IF;
        IF is_plain AND cardinality(first_dues) <= 1 THEN
            waiting := CASE WHEN head_dues[lane_index] IS NOT NULL
                THEN open_lanes.request_indexes[lane_index:lane_index] END;
        ELSE
            waiting := {schema}.find_waiting_lanes_1(now, open_lanes.request_indexes, head_dues, has_limits, p_names);
        END IF;
        IF has_more_turns THEN
            waiting := ARRAY[1];
        ELSIF has_turns OR NOT is_new THEN
            waiting := {schema}.add_waiting_turns_1(now, waiting, p_queues, p_names);
        END IF;
        IF closed IS NOT NULL OR changing IS NOT NULL THEN
            waiting := ARRAY(
                SELECT place FROM generate_subscripts(p_queues, 1) place
                WHERE place = ANY (waiting) OR closed[place] OR changing[place]
            );
        END IF;
        IF has_keys AND waiting <> '{}' THEN
            waiting := ARRAY(
                SELECT place FROM unnest(waiting) AS w (place)
                WHERE NOT {schema}.is_queue_full_1(now, p_queues[place], p_names[place])
            );
        END IF;
    END IF;
    IF promoted_lanes IS NOT NULL THEN
        queues_to_notify := queues_to_notify || {schema}.list_queues_of_left_jobs_1(promoted_lanes, session.number, p_number);
    END IF;
    IF p_total > 0 AND next_due <= now + 20000000 THEN  -- DUE_WINDOW in core/exchange.py
        next_due := {schema}.report_due_1(now, session.number, next_due);
    END IF;
    IF has_keys THEN
        next_due := LEAST(next_due, (
            SELECT u.opens_at FROM {schema}.limit_key u WHERE u.opens_at >= now AND EXISTS (
                SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
            ) ORDER BY u.opens_at LIMIT 1
        ));
        IF limits_changed AND (EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key)) THEN
            next_due := LEAST(next_due, now);
        END IF;
    END IF;
    IF has_limits OR has_keys THEN
        next_due := LEAST(next_due, {schema}.find_next_opening_1(
            now, p_queues, p_names, p_low_water_lanes, p_low_water_marks));
    END IF;

    -- Step 6: record the exchange, and return the status row.
    IF is_new THEN
        INSERT INTO {schema}.exchange_log (session, number, nonce, results)
        VALUES (session.number, p_number, p_nonce, codes);
        IF p_number % 16 = 0 THEN  -- less work than one deletion in each exchange
            DELETE FROM {schema}.exchange_log e WHERE e.session = session.number AND e.number < p_number - 1;
        END IF;
    END IF;
    RETURN NEXT CAST(ROW(
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,  -- the columns of a leased job
        'ok', NULL, now, codes, nonce, next_due, waiting,
        CASE WHEN to_notify IS NOT NULL THEN {schema}.get_queues_of_lanes_1(to_notify) END || queues_to_notify,
        main_lanes, queues, names, ranks, ids, head_dues,
        pg_current_xact_id()::text::int8 + 1, session.oldest_xid,
        CASE WHEN p_now IS NULL THEN LEAST(now - first_reading, 2000000000) ELSE 0 END
    ) AS {schema}.exchange_reply);
END $$;

-- name: exchange_pooled
-- Run `exchange_1` on a pooled connection, which does not have the planner settings of the exchange connection.
CREATE OR REPLACE FUNCTION {schema}.exchange_pooled_1(
    p_now int8, p_session text, p_number int8,
    p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[],
    p_texts text[], p_fractions float8[],
    p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[], p_levels int8[], p_caps int4[],
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
        p_texts, p_fractions, p_total, p_nonce, p_ageing, p_queues, p_names, p_levels, p_caps,
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

-- name: find_open_lanes
-- Find the lanes from which jobs may be leased: not paused, and with room under the limits of their name and their queue. If
-- the limits of a name are not locked, its jobs came a moment ago, and the next exchange leases them.
-- Inputs:
--   p_now                         the time
--   p_queues, p_names, p_levels   the requested lanes
--   p_locked                      the names whose limits are locked; NULL: there are no limits
--   p_low_water_lanes, p_low_water_marks
--                                 lanes and their low-water marks. They are ignored for late lanes, and if the clock was
--                                 set back.
-- Result: arrays with one element for each open lane:
--   ids                           its number
--   main_lanes                    for a late lane the number of its main lane, else its own number
--   request_indexes               the index of the requested lane that it belongs to
--   ranks, levels                 its rank; the level of its queue
--   low_water_marks               the due time from which to read it
--   available                     how many jobs of its name may start now; NULL: it has no limit
--   queues, names                 its queue and name
-- Atomic: the caller has locked the tables of limits and pauses
CREATE OR REPLACE FUNCTION {schema}.find_open_lanes_1(
    p_now int8, p_queues text[], p_names text[], p_levels int8[], p_locked text[],
    p_low_water_lanes int4[], p_low_water_marks int8[],
    OUT ids int4[], OUT main_lanes int4[], OUT request_indexes int4[], OUT ranks int2[], OUT levels int8[],
    OUT low_water_marks int8[], OUT available int4[], OUT queues text[], OUT names text[]
) LANGUAGE plpgsql AS $$
DECLARE
    has_queue_limits bool := EXISTS (SELECT FROM {schema}.keyed_limit k WHERE k.limit_name >= 'queue:' AND k.limit_name < 'queue;');
BEGIN
    SELECT array_agg(open_lane.id), array_agg(open_lane.main_lane), array_agg(open_lane.place), array_agg(open_lane.rank),
        array_agg(open_lane.level), array_agg(open_lane.low_water_mark), array_agg(open_lane.available),
        array_agg(open_lane.queue), array_agg(open_lane.name)
    INTO ids, main_lanes, request_indexes, ranks, levels, low_water_marks, available, queues, names
    FROM (
        SELECT l.id, coalesce(l.main_lane, l.id) AS main_lane, CAST(requested.place AS int4) AS place, l.rank,
            requested.level, requested.queue, requested.name, limits.available,
            CASE WHEN l.is_late OR mark.low_water_mark > p_now THEN {schema}.get_lowest_time_1()
                ELSE coalesce(mark.low_water_mark, {schema}.get_lowest_time_1()) END AS low_water_mark
        FROM unnest(p_queues, p_names, p_levels) WITH ORDINALITY AS requested (queue, name, level, place)
        CROSS JOIN LATERAL (
            SELECT * FROM {schema}.lane l WHERE l.queue = requested.queue AND l.name = requested.name AND l.tenant = '' OFFSET 0
        ) l
        CROSS JOIN LATERAL (SELECT width_bucket(l.id, p_low_water_lanes) AS place OFFSET 0) found
        CROSS JOIN LATERAL (
            SELECT CASE WHEN p_low_water_lanes[found.place] = l.id THEN p_low_water_marks[found.place] END AS low_water_mark
        ) mark
        CROSS JOIN LATERAL (SELECT {schema}.count_available_1(p_now, requested.name) AS available) limits
        WHERE NOT EXISTS (
                SELECT FROM {schema}.paused_queue p
                WHERE p.queue = requested.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
            )
            AND coalesce(limits.available, 1) > 0
            AND NOT (has_queue_limits AND {schema}.is_queue_full_1(p_now, requested.queue, requested.name))
            AND (requested.name = ANY (p_locked) OR limits.available IS NULL AND (p_locked IS NULL OR NOT EXISTS (
                SELECT FROM {schema}.keyed_limit k WHERE k.job_name = requested.name
            )))
        ORDER BY requested.place, l.rank, l.is_late
    ) open_lane;
END $$;

-- name: read_lane_heads
-- Return the earliest due time of each lane.
-- Inputs: lanes; for each a due time before which it is known to be empty
-- Result: the due times in the same order; NULL for an empty lane
CREATE OR REPLACE FUNCTION {schema}.read_lane_heads_1(p_ids int4[], p_low_water_marks int8[]) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    head_dues int8[] := '{}';
    head int8;
BEGIN
    FOR i IN 1..coalesce(cardinality(p_ids), 0) LOOP
        SELECT r.due INTO head FROM {schema}.ready r WHERE r.lane = p_ids[i] AND r.due >= p_low_water_marks[i]
        ORDER BY r.due, r.seq LIMIT 1;
        head_dues[i] := head;
    END LOOP;
    RETURN head_dues;
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
        SELECT r.due INTO head FROM {schema}.ready r WHERE r.lane = p_taken_ids[i] AND r.due >= p_low_water_marks[i]
        ORDER BY r.due, r.seq LIMIT 1;
        head_dues[array_position(p_ids, p_taken_ids[i])] := head;
        IF head IS NOT NULL THEN
            waiting := waiting + 1;
        END IF;
    END LOOP;
    RETURN head_dues;
END $$;

-- name: find_first_lanes
-- Find the lanes that hold the first jobs of a merge: a job of another lane comes after `p_total` first jobs of lanes. If
-- lanes of one name and queue differ in their priorities, all lanes that hold jobs.
-- Inputs: the maximum number of jobs; the time; the ageing span (0: no ageing); the open lanes as `find_open_lanes_1`
--   returns them, and their earliest due times (NULL: empty)
-- Result: the same for these lanes; `available` is NULL
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION {schema}.find_first_lanes_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[], p_queues text[], p_names text[], p_head_dues int8[],
    OUT ids int4[], OUT main_lanes int4[], OUT request_indexes int4[], OUT ranks int2[], OUT levels int8[],
    OUT low_water_marks int8[], OUT available int4[], OUT queues text[], OUT names text[]
) LANGUAGE plpgsql AS $$
DECLARE
    most int4 := p_total;
BEGIN
    IF cardinality(p_ids) > (SELECT count(DISTINCT r.place) FROM unnest(p_request_indexes) AS r (place)) THEN
        most := 2147483647;
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
--   p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_available
--                                 the open lanes, as `find_open_lanes_1` returns them
--   p_queues, p_names, p_caps     the requested lanes; the cap of each queue (NULL: no cap)
-- Result: a number for each open lane
-- Locks: none; it reads snapshots. Locked candidates would be hidden from other workers.
-- Atomic: a read. The caller then takes that many jobs and skips the ones that another transaction has locked.
CREATE OR REPLACE FUNCTION {schema}.plan_claims_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[], p_available int4[], p_queues text[], p_names text[], p_caps int4[]
) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    chunks int4[] := array_fill(
        LEAST(p_total, p_total / cardinality(p_ids) + 2), ARRAY[cardinality(p_ids)]);
    counts int4[];
    incomplete int4[];
    taken record;
    is_limited bool := EXISTS (SELECT FROM unnest(p_available) available WHERE available IS NOT NULL)
        OR EXISTS (SELECT FROM unnest(p_caps) cap WHERE cap IS NOT NULL);
BEGIN
    LOOP
        IF is_limited THEN
            SELECT merged.counts, merged.incomplete INTO counts, incomplete FROM {schema}.merge_lanes_limited_1(
                p_total, p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_available,
                chunks, p_queues, p_names, p_caps
            ) merged;
        ELSE
            counts := array_fill(0, ARRAY[cardinality(p_ids)]);
            incomplete := NULL;
            FOR taken IN
                SELECT merged.lane_index, count(*) AS jobs, bool_or(merged.is_end AND merged.place < p_total) AS is_incomplete
                FROM (
                    SELECT * FROM {schema}.merge_jobs_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels,
                        p_low_water_marks, chunks) LIMIT p_total
                ) merged GROUP BY merged.lane_index
            LOOP
                counts[taken.lane_index] := taken.jobs;
                IF taken.is_incomplete THEN
                    incomplete := incomplete || taken.lane_index;
                END IF;
            END LOOP;
        END IF;
        EXIT WHEN incomplete IS NULL;
        FOR i IN 1..cardinality(incomplete) LOOP
            chunks[incomplete[i]] := LEAST(2 * chunks[incomplete[i]], p_total + 1);
        END LOOP;
    END LOOP;
    RETURN counts;
END $$;

-- name: merge_jobs
-- Merge the first jobs of several lanes in the order of delivery.
-- A job is ranked by the worst key between the front of its lane and the job itself (decision 0001).
-- Inputs: the time; the ageing span (0: no ageing); the open lanes as `find_open_lanes_1` returns them; how many jobs of
--   each to read
-- Result: one row for each job, in order:
--   place, lane_index, due, seq    its place; the index of its lane; the job
--   is_end                         the job is the last one that was read from a lane that may have more
--   worst                          the key by which the merge ranks the job
CREATE OR REPLACE FUNCTION {schema}.merge_jobs_1(
    p_now int8, p_ageing int8, p_ids int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[],
    p_low_water_marks int8[], p_chunks int4[]
) RETURNS TABLE (place int8, lane_index int4, due int8, seq int8, is_end bool, worst int8[])
LANGUAGE sql STABLE AS $$
    SELECT row_number() OVER (ORDER BY ranked.worst, ranked.rank, ranked.due, ranked.seq), ranked.lane_index, ranked.due,
        ranked.seq, ranked.nth = ranked.chunk, ranked.worst
    FROM (
        SELECT candidate.*, max(ARRAY[
                -candidate.level - CASE WHEN p_ageing > 0 AND p_now > candidate.due
                    THEN (p_now - candidate.due) / p_ageing ELSE 0 END,
                candidate.rank, candidate.due, candidate.seq
            ]) OVER (PARTITION BY candidate.request_index ORDER BY candidate.rank, candidate.due, candidate.seq
                ROWS UNBOUNDED PRECEDING) AS worst
        FROM (
            SELECT CAST(lane.lane_index AS int4) AS lane_index, lane.request_index, lane.rank, lane.level, lane.chunk,
                r.due, r.seq, row_number() OVER (PARTITION BY lane.lane_index ORDER BY r.due, r.seq) AS nth
            FROM unnest(p_ids, p_request_indexes, p_ranks, p_levels, p_low_water_marks, p_chunks) WITH ORDINALITY
                AS lane (id, request_index, rank, level, low_water_mark, chunk, lane_index),
            LATERAL (
                SELECT r.due, r.seq FROM {schema}.ready r
                WHERE r.lane = lane.id AND r.due >= lane.low_water_mark
                ORDER BY r.due, r.seq LIMIT lane.chunk
            ) r
        ) candidate
    ) ranked
    ORDER BY 1
$$;

-- name: merge_lanes_limited
-- Do the same as `merge_jobs_1` when caps of queues or limits of names apply.
-- Inputs: as for `plan_claims_1`, and how many jobs of each lane to read
-- Result:
--   counts                        how many jobs to take from each lane
--   incomplete                    the indexes of lanes from which more jobs must be read; NULL: none
CREATE OR REPLACE FUNCTION {schema}.merge_lanes_limited_1(
    p_total int4, p_now int8, p_ageing int8, p_ids int4[], p_request_indexes int4[], p_ranks int2[],
    p_levels int8[], p_low_water_marks int8[], p_available int4[], p_chunks int4[], p_queues text[],
    p_names text[], p_caps int4[], OUT counts int4[], OUT incomplete int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    queue_indexes int4[];
    name_indexes int4[];
    queue_available int4[];
    name_available int4[];
    taken int4 := 0;
    job record;
    queue int4;
    name int4;
BEGIN
    counts := array_fill(0, ARRAY[cardinality(p_ids)]);
    SELECT array_agg(array_position(p_queues, p_queues[requested.request_index]) ORDER BY requested.lane_index),
        array_agg(array_position(p_names, p_names[requested.request_index]) ORDER BY requested.lane_index)
    INTO queue_indexes, name_indexes
    FROM unnest(p_request_indexes) WITH ORDINALITY AS requested (request_index, lane_index);
    SELECT array_agg(coalesce(c, p_total)) INTO queue_available FROM unnest(p_caps) c;
    name_available := array_fill(p_total, ARRAY[cardinality(p_names)]);
    FOR i IN 1..cardinality(p_ids) LOOP
        IF p_available[i] IS NOT NULL THEN
            name_available[name_indexes[i]] := p_available[i];
        END IF;
    END LOOP;
    FOR job IN
        SELECT * FROM {schema}.merge_jobs_1(p_now, p_ageing, p_ids, p_request_indexes, p_ranks, p_levels,
            p_low_water_marks, p_chunks)
    LOOP
        queue := queue_indexes[job.lane_index];
        name := name_indexes[job.lane_index];
        CONTINUE WHEN queue_available[queue] <= 0 OR name_available[name] <= 0;
        counts[job.lane_index] := counts[job.lane_index] + 1;
        queue_available[queue] := queue_available[queue] - 1;
        name_available[name] := name_available[name] - 1;
        taken := taken + 1;
        EXIT WHEN taken = p_total;
        IF job.is_end AND queue_available[queue] > 0 AND name_available[name] > 0 THEN
            incomplete := incomplete || job.lane_index;
        END IF;
    END LOOP;
END $$;

-- name: claim_jobs
-- Lease the first jobs of lanes to a session, and return them.
-- Inputs: the time; the session; its exchange and nonce; the ageing span; the open lanes as `find_open_lanes_1` returns
--   them; how many jobs to take from each
-- Result: one row for each job; `reply_position` is its position in the merge
-- Locks: the rows of `ready` that it deletes; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.claim_jobs_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_ageing int8, p_ids int4[],
    p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[], p_low_water_marks int8[],
        p_counts int4[]
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY (ARRAY(
            SELECT f.ctid FROM unnest(p_ids, p_low_water_marks, p_counts) AS w (id, low_water_mark, most),
            LATERAL (
                SELECT r.ctid FROM {schema}.ready r WHERE r.lane = w.id AND r.due >= w.low_water_mark
                ORDER BY r.due, r.seq LIMIT w.most FOR UPDATE SKIP LOCKED
            ) f
            WHERE w.most > 0
        )) RETURNING r.lane, r.due, r.seq, r.attempt_status
    ), ranked AS (
        SELECT taken.*, w.main_lane, w.rank, w.request_index, max(ARRAY[
                -w.level - CASE WHEN p_ageing > 0 AND p_now > taken.due THEN (p_now - taken.due) / p_ageing ELSE 0 END,
                w.rank, taken.due, taken.seq
            ]) OVER (PARTITION BY w.request_index ORDER BY w.rank, taken.due, taken.seq ROWS UNBOUNDED PRECEDING) AS worst
        FROM taken, LATERAL (SELECT array_position(p_ids, taken.lane) AS lane_index) n,
        LATERAL (
            SELECT p_main_lanes[n.lane_index] AS main_lane, p_request_indexes[n.lane_index] AS request_index,
                p_ranks[n.lane_index] AS rank,
                p_levels[n.lane_index] AS level
        ) w
    ), placed AS (
        SELECT ranked.*, CASE WHEN ranked.attempt_status > 0 THEN {schema}.get_attempt_state_1(ranked.seq) END AS attempts,
            CAST(row_number() OVER (ORDER BY ranked.worst, ranked.rank, ranked.due, ranked.seq) AS int4) AS place
        FROM ranked
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
            failures, lost, attempt_status,
            extra_flags, nonce, settled_token)
        SELECT placed.seq, placed.due, p_now, p_number, p_session, placed.main_lane, placed.place,
            coalesce((placed.attempts).fence, 0) + 1,
            coalesce((placed.attempts).failures, 0), coalesce((placed.attempts).lost, 0), placed.attempt_status,
            coalesce((placed.attempts).extra_flags, 0::int2), p_nonce, (placed.attempts).settled_token
        FROM placed
    )
    SELECT placed.place, placed.seq, placed.due, j.created_at, j.lane, coalesce((placed.attempts).fence, 0) + 1,
        coalesce((placed.attempts).failures, 0), coalesce((placed.attempts).lost, 0), j.id, j.options, j.payload,
        (CAST(NULL AS {schema}.exchange_status)).*
    FROM placed, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = placed.seq OFFSET 0) j;
END $$;

-- name: claim_large_jobs
-- Do the same as `claim_jobs_1` when payloads may be large: return no more than a number of bytes.
-- Inputs: as for `claim_jobs_1`; the maximum number of bytes of all deliveries
-- Result: one row for each job; `reply_position` is its position in the merge. Jobs beyond the maximum return to their
--   places in `ready`, but the first job is always delivered.
-- Locks: the rows of `ready` that it deletes; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.claim_large_jobs_1(
    p_now int8, p_session int4, p_number int8, p_nonce bytea, p_ageing int8, p_ids int4[],
    p_main_lanes int4[], p_request_indexes int4[], p_ranks int2[], p_levels int8[], p_low_water_marks int8[],
        p_counts int4[],
    p_max_bytes int8
) RETURNS SETOF {schema}.exchange_reply
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY (ARRAY(
            SELECT f.ctid FROM unnest(p_ids, p_low_water_marks, p_counts) AS w (id, low_water_mark, most),
            LATERAL (
                SELECT r.ctid FROM {schema}.ready r WHERE r.lane = w.id AND r.due >= w.low_water_mark
                ORDER BY r.due, r.seq LIMIT w.most FOR UPDATE SKIP LOCKED
            ) f
        )) RETURNING r.lane, r.due, r.seq, r.attempt_status
    ), ranked AS (
        SELECT taken.*, w.main_lane, w.rank, w.request_index, max(ARRAY[
                -w.level - CASE WHEN p_ageing > 0 AND p_now > taken.due THEN (p_now - taken.due) / p_ageing ELSE 0 END,
                w.rank, taken.due, taken.seq
            ]) OVER (PARTITION BY w.request_index ORDER BY w.rank, taken.due, taken.seq ROWS UNBOUNDED PRECEDING) AS worst
        FROM taken, LATERAL (SELECT array_position(p_ids, taken.lane) AS lane_index) n,
        LATERAL (
            SELECT p_main_lanes[n.lane_index] AS main_lane, p_request_indexes[n.lane_index] AS request_index,
                p_ranks[n.lane_index] AS rank,
                p_levels[n.lane_index] AS level
        ) w
    ), placed AS (
        SELECT ranked.*, CASE WHEN ranked.attempt_status > 0 THEN {schema}.get_attempt_state_1(ranked.seq) END AS attempts,
            CAST(row_number() OVER o AS int4) AS place, j.created_at, j.lane AS at_first, j.id, j.options,
            j.payload, sum({schema}.get_delivery_size_1(j.payload, j.options)) OVER o AS bytes
        FROM ranked, LATERAL (SELECT * FROM {schema}.job j WHERE j.seq = ranked.seq OFFSET 0) j
        WINDOW o AS (ORDER BY ranked.worst, ranked.rank, ranked.due, ranked.seq)
    ), returned AS (
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        SELECT placed.due, placed.seq, placed.lane, placed.attempt_status FROM placed
            WHERE placed.bytes > p_max_bytes AND placed.place > 1
    ), leased AS (
        INSERT INTO {schema}.lease (seq, due, leased_at, exchange_number, session, lane, reply_position, fence,
            failures, lost, attempt_status,
            extra_flags, nonce, settled_token)
        SELECT placed.seq, placed.due, p_now, p_number, p_session, placed.main_lane, placed.place,
            coalesce((placed.attempts).fence, 0) + 1,
            coalesce((placed.attempts).failures, 0), coalesce((placed.attempts).lost, 0), placed.attempt_status,
            coalesce((placed.attempts).extra_flags, 0::int2), p_nonce, (placed.attempts).settled_token
        FROM placed WHERE placed.bytes <= p_max_bytes OR placed.place = 1
    )
    SELECT placed.place, placed.seq, placed.due, placed.created_at, placed.at_first,
        coalesce((placed.attempts).fence, 0) + 1,
        coalesce((placed.attempts).failures, 0), coalesce((placed.attempts).lost, 0), placed.id, placed.options,
            placed.payload,
        (CAST(NULL AS {schema}.exchange_status)).*
    FROM placed WHERE placed.bytes <= p_max_bytes OR placed.place = 1;
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
-- Inputs: the time; for each open lane, the index of its requested lane and its earliest due time; whether there are
--   limits; the names of the requested lanes
-- Result: indexes of requested lanes in ascending order; NULL: none
-- Atomic: one read; the caller has locked the limits
CREATE OR REPLACE FUNCTION {schema}.find_waiting_lanes_1(p_now int8, p_request_indexes int4[], p_head_dues int8[],
    p_limited bool, p_names text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
BEGIN
    IF array_remove(p_head_dues, NULL) = '{}' THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(
        SELECT DISTINCT lane.request_index FROM unnest(p_request_indexes, p_head_dues) AS lane (request_index, due)
        WHERE lane.due IS NOT NULL
            AND NOT (p_limited AND coalesce({schema}.count_available_1(p_now, p_names[lane.request_index]), 1) <= 0)
        ORDER BY lane.request_index
    );
END $$;

-- name: add_waiting_turns
-- Add the requested lanes with jobs that wait for the turn of their tenant and may be leased.
-- Inputs: the time; indexes of other requested lanes (NULL: none); queues and names of the requested lanes
-- Result: indexes of requested lanes in ascending order; NULL: none
CREATE OR REPLACE FUNCTION {schema}.add_waiting_turns_1(
    p_now int8, p_waiting int4[], p_queues text[], p_names text[]
) RETURNS int4[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT array_agg(CAST(w.place AS int4) ORDER BY w.place)
        FROM unnest(p_queues, p_names) WITH ORDINALITY AS w (queue, name, place)
        WHERE w.place = ANY (p_waiting) OR EXISTS (
            SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name
                AND EXISTS (SELECT FROM {schema}.ready z WHERE z.lane = t.lane OFFSET 0)
        ) AND NOT EXISTS (
            SELECT FROM {schema}.paused_queue p WHERE p.queue = w.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)
        ) AND coalesce({schema}.count_available_1(p_now, w.name), 1) > 0
    );
END $$;

-- name: repeat_exchange
-- Return the jobs that an exchange leased.
-- Inputs: the session; the number of the exchange
-- Result: one row for each job
CREATE OR REPLACE FUNCTION {schema}.repeat_exchange_1(p_session int4, p_number int8) RETURNS SETOF {schema}.exchange_reply
LANGUAGE sql STABLE AS $$
    SELECT l.reply_position, l.seq, l.due, j.created_at, l.lane, l.fence, l.failures, l.lost, j.id, j.options, j.payload,
        (CAST(NULL AS {schema}.exchange_status)).*
    FROM {schema}.lease l JOIN {schema}.job j ON j.seq = l.seq
    WHERE l.session = p_session AND l.exchange_number = p_number
$$;

-- name: release_excess
-- Release the jobs of an exchange that do not fit in the reply of its repetition.
-- Inputs: the time; the session; the number of the exchange; the maximum number of bytes of all deliveries
-- Result: the lanes of the released jobs; NULL: none
-- Locks: the limits of these jobs, in one statement; then rows of jobs
-- Atomic: part of the caller's transaction. No loss is counted. A job that is to be cancelled ends.
CREATE OR REPLACE FUNCTION {schema}.release_excess_1(p_now int8, p_session int4, p_number int8,
    p_max_bytes int8) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    held {schema}.lease;
    ended int4[];
    key_numbers int8[];
    taken_at int8[];
BEGIN
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
        taken_at := taken_at || held.leased_at;
        key_numbers := key_numbers || held.key_numbers;
        PERFORM {schema}.refund_keys_1(p_now, held);
    END LOOP;
    IF ended IS NOT NULL THEN
        PERFORM {schema}.release_limits_1(ended);
        PERFORM {schema}.give_units_back_1(p_now, ended, taken_at);
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
