-- Settle what is done and reserve what may run: the heart.
-- Inputs: the time or NULL; the session's id; the number; the settlements: letters (NULL: all are
--   completed, each another job), then as `settle_each_1`; how many are wanted; the nonce; the ageing span; what is
--   asked for, side by side: queues, names, levels, caps; lanes and, side by side, due times before
--   which nothing stands in them, and the same of what is scheduled
-- Result: a row for each job handed out, whose kind is its place; then one of kind 0 that says all else,
--   or one of kind -1: the session is not alive; or of kind -2: another number is due, the last is seq
-- Locks: the session's own number; gates by name; unique keys; then places
-- Atomic: one transaction. Its commit is not waited for: a server that crashes may forget it, and
--   then jobs are repeated, and none is lost
CREATE OR REPLACE FUNCTION nb.exchange_1(
    p_now int8, p_session text, p_number int8, p_kinds text, p_seqs int8[], p_ids bytea[],
    p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[],
    p_fractions float8[], p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[],
    p_levels int8[], p_caps int4[], p_floor_lanes int4[], p_floors int8[], p_scheduled_floor int8
) RETURNS SETOF nb.reply
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    early int8;
    now int8;
    me int4;
    before record;
    locked text[];
    most int4;
    handed bool := false;
    settled record;
    promoted record;
    lines record;
    seen_xmin int8;
    is_new bool;
    is_plain bool := false;
    rung int4[];
    letters text := '';
    nonce bytea := p_nonce;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true),
        pg_advisory_xact_lock(hashtextextended(p_session, 7041));
    early := CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8);  -- before we have a number
    now := nb.clock_1(p_now);
    SELECT s.n INTO me FROM nb.session s
    WHERE s.id = p_session AND s.dead_at IS NULL AND s.left_at IS NULL;
    IF NOT FOUND THEN
        RETURN NEXT nb.word_1(-1, 0);
        RETURN;
    END IF;
    SELECT t.number, t.results, t.nonce INTO before FROM nb.turn t
    WHERE t.session = me ORDER BY t.number DESC LIMIT 1;
    is_new := p_number = coalesce(before.number, 0) + 1;
    IF NOT is_new AND (before.number IS NULL OR p_number <> before.number) THEN
        RETURN NEXT nb.word_1(-2, coalesce(before.number, 0));
        RETURN;
    END IF;
    locked := nb.concerned_1(now, me, p_seqs, p_queues, p_names, p_floor_lanes, p_floors);
    IF NOT is_new THEN
        letters := before.results;
        nonce := before.nonce;
    ELSIF p_seqs IS NOT NULL THEN
        IF p_kinds IS NULL THEN
            SELECT *, repeat('d', cardinality(p_seqs)) AS letters INTO settled
            FROM nb.settle_plain_1(now, me, p_seqs, p_fences, p_nonces, p_bodies);
            is_plain := settled.settled;
        END IF;
        IF NOT is_plain THEN
            SELECT * INTO settled FROM nb.settle_each_1(now, me, p_kinds, p_seqs, p_ids, p_fences,
                p_nonces, p_bodies, p_delays, p_texts, p_fractions);
        END IF;
        letters := settled.letters;
        rung := settled.rung;
        IF locked IS NOT NULL THEN
            rung := rung || nb.open_gate_1(settled.ended);
        END IF;
    END IF;
    seen_xmin := CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS int8);
    SELECT * INTO promoted
    FROM nb.promote_1(now, CASE WHEN is_new THEN 10000 ELSE 0 END, p_scheduled_floor);
    SELECT * INTO lines
    FROM nb.open_lines_1(now, p_queues, p_names, p_levels, locked, p_floor_lanes, p_floors);
    IF NOT is_new THEN
        RETURN QUERY SELECT * FROM nb.repeat_1(me, p_number);
        handed := FOUND;
    ELSE
        IF p_total <= 0 OR lines.ids IS NULL THEN
            NULL;
        ELSIF nb.has_large_1() THEN
            RETURN QUERY SELECT * FROM nb.take_bounded_1(now, me, p_number, p_nonce, p_ageing, lines.ids,
                lines.homes, lines.groups, lines.ranks, lines.levels, lines.floors,
                nb.look_1(p_total, now, p_ageing, lines.ids, lines.groups, lines.ranks, lines.levels,
                    lines.floors, lines.rooms, p_queues, p_names, p_caps));
            handed := FOUND;
        ELSIF cardinality(lines.ids) = 1 THEN  -- nothing to merge: as `take_1`, in fewer steps
            most := GREATEST(0, LEAST(p_total, coalesce(p_caps[lines.groups[1]], p_total),
                coalesce(lines.rooms[1], p_total)));
            RETURN QUERY
            WITH t AS (
                DELETE FROM nb.ready r WHERE r.ctid = ANY (ARRAY(
                    SELECT r.ctid FROM nb.ready r WHERE r.lane = lines.ids[1] AND r.due >= lines.floors[1]
                    ORDER BY r.due, r.seq LIMIT most FOR UPDATE SKIP LOCKED
                )) RETURNING r.due, r.seq, r.tried
            ), x AS (
                SELECT t.*, coalesce(p.fence, 0) + 1 AS fence, coalesce(p.failures, 0) AS failures,
                    coalesce(p.lost, 0) AS lost, coalesce(p.noted, 0::int2) AS noted, p.settled,
                    CAST(row_number() OVER (ORDER BY t.due, t.seq) AS int4) AS place
                FROM t LEFT JOIN LATERAL (
                    SELECT * FROM nb.past p WHERE t.tried > 0 AND p.seq = t.seq OFFSET 0
                ) p ON true
            ), l AS (
                INSERT INTO nb.lease (seq, due, at, number, session, lane, place, fence, failures, lost, tried,
                    noted, nonce, settled)
                SELECT x.seq, x.due, now, p_number, me, lines.homes[1], x.place, x.fence, x.failures, x.lost,
                    x.tried, x.noted, p_nonce, x.settled
                FROM x
            )
            SELECT x.place, x.seq, x.due, j.created, j.lane, x.fence, x.failures, x.lost, j.id, j.options, j.payload,
                NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::int4[], NULL::int4[], NULL::int8[]
            FROM x, LATERAL (SELECT * FROM nb.job j WHERE j.seq = x.seq OFFSET 0) j;
            handed := FOUND;
        ELSE
            RETURN QUERY SELECT * FROM nb.take_1(now, me, p_number, p_nonce, p_ageing, lines.ids,
                lines.homes, lines.groups, lines.ranks, lines.levels, lines.floors,
                nb.look_1(p_total, now, p_ageing, lines.ids, lines.groups, lines.ranks, lines.levels,
                    lines.floors, lines.rooms, p_queues, p_names, p_caps));
            handed := FOUND;
        END IF;
        IF handed AND locked IS NOT NULL THEN
            PERFORM nb.fill_gates_1(me, p_number);
        END IF;
        INSERT INTO nb.turn (session, number, nonce, results) VALUES (me, p_number, p_nonce, letters);
        DELETE FROM nb.turn t WHERE t.session = me AND t.number = p_number - 2;
    END IF;
    RETURN NEXT nb.summary_1(now, promoted.next_due, nonce, letters, rung, handed,
        CASE WHEN is_new THEN lines.homes ELSE nb.lanes_of_1(me, p_number) END, locked, p_names, lines.ids,
        lines.groups, lines.floors, seen_xmin, CASE WHEN p_now IS NULL THEN early END);
END $$;
