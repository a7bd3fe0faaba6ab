-- Settle what is done and reserve what may run: the heart.
-- Inputs: the time or NULL; the session's id; the number; the settlements: letters (NULL: all are
--   completed, each another job), then as `settle_each_1`; how many are wanted; the nonce; the ageing span; what is
--   asked for, side by side: queues, names, levels, caps; the most bytes of deliveries; lanes and, side
--   by side, due times before which nothing stands in them, and the same of what is scheduled
-- Result: a row for each job handed out, whose kind is its place; then one of kind 0 that says all else,
--   or one of kind -1: the session is not alive; or of kind -2: another number is due, the last is
--   seq. Of kind 0: seq is the time, due the next due time, id the nonce, options the letters;
--   once `since`, the first transaction that ran when the lines were read, is `created` at least, all
--   are over that took a time more than `fence` before that of this one; the lanes that jobs handed out
--   can be of (numbers, queues, names, ranks); queues to ring; which of those asked for still hold
--   jobs; and the first due time of each open lane. It fails with NB001 when completions without
--   letters are not all of leases that are held. A repeat applies nothing, but gives back what does not fit
--   the most bytes any more. The sum is looked at where a payload ever lay apart from its row, or where
--   4 KB for each job wanted would not fit (in its row a payload takes 2 KB at most, unless it shrinks a lot)
-- Locks: the session's own number; gates by name; unique keys; then places
-- Atomic: one transaction. Its commit is not waited for: a server that crashes may forget it, and
--   then jobs are repeated, and none is lost
CREATE OR REPLACE FUNCTION nb.exchange_1(
    p_now int8, p_session text, p_number int8, p_kinds text, p_seqs int8[], p_ids bytea[],
    p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[],
    p_fractions float8[], p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[],
    p_levels int8[], p_caps int4[], p_max_bytes int8, p_floor_lanes int4[], p_floors int8[], p_scheduled_floor int8
) RETURNS SETOF nb.reply
LANGUAGE plpgsql AS $$
DECLARE
    early int8;
    now int8;
    me record;
    is_new bool;
    nonce bytea := p_nonce;
    letters text := '';
    locked text[];
    settled record;
    rung int4[];
    next_due int8;
    lane record;
    place int4;
    floor int8;
    head int8;
    most int4;
    lines record;
    seqs int8[];
    any_tried bool;
    ids int4[];
    homes int4[];
    ranks int2[];
    queues text[];
    names text[];
    heads int8[];
    waiting int4[];
    handed bool := false;
    bounded bool;
    counts int4[];
BEGIN
    IF set_config('synchronous_commit', 'off', true) IS NULL
        OR pg_advisory_xact_lock(hashtextextended(p_session, 7041)) IS NULL
    THEN  -- never: an IF costs less than a statement
        RETURN;
    END IF;
    LOCK TABLE nb.gate, nb.paused IN ROW SHARE MODE;
    early := CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8);  -- before we have a number
    now := nb.clock_1(p_now);
    SELECT s.n, t.number, t.results, t.nonce, pg_snapshot_xmin(pg_current_snapshot())::text::int8 AS since,
        EXISTS (SELECT FROM nb.gate) AS limited, EXISTS (SELECT FROM nb.paused) AS pausing, (
            SELECT pg_relation_size(c.reltoastrelid) > 0 FROM pg_class c WHERE c.oid = CAST('nb.job' AS regclass)
        ) AS large, (
            SELECT z.due FROM nb.scheduled z
            WHERE z.due >= CASE WHEN p_scheduled_floor <= now THEN p_scheduled_floor ELSE -9223372036854775808 END
            ORDER BY z.due, z.seq LIMIT 1
        ) AS next_due
    INTO me
    FROM nb.session s LEFT JOIN LATERAL (
        SELECT * FROM nb.turn t WHERE t.session = s.n ORDER BY t.number DESC LIMIT 1
    ) t ON true
    WHERE s.id = p_session AND s.dead_at IS NULL AND s.left_at IS NULL;
    IF NOT FOUND THEN
        RETURN NEXT nb.word_1(-1, 0);
        RETURN;
    END IF;
    is_new := p_number = coalesce(me.number, 0) + 1;
    IF NOT is_new AND (me.number IS NULL OR p_number <> me.number) THEN
        RETURN NEXT nb.word_1(-2, coalesce(me.number, 0));
        RETURN;
    END IF;
    next_due := me.next_due;
    bounded := me.large OR p_total * 4096::int8 > p_max_bytes;
    IF me.limited THEN
        seqs := p_seqs;
        IF NOT is_new THEN  -- some of them may go back to the line
            seqs := ARRAY(SELECT l.seq FROM nb.lease l WHERE l.session = me.n AND l.number = p_number);
        END IF;
        locked := nb.concerned_1(now, me.n, seqs, p_queues, p_names, p_floor_lanes, p_floors);
    END IF;
    IF NOT is_new THEN
        letters := me.results;
        nonce := me.nonce;
        rung := nb.give_back_1(now, me.n, p_number, p_max_bytes);
    ELSIF p_seqs IS NOT NULL THEN
        IF p_kinds IS NULL THEN
            settled := nb.settle_plain_1(now, me.n, p_seqs, p_fences, p_nonces, p_bodies);
            letters := repeat('d', cardinality(p_seqs));
            IF settled.keyed IS NOT NULL THEN
                rung := nb.free_keys_1(settled.keyed, settled.keyed_lanes, settled.keys);
            END IF;
        ELSE
            settled := nb.settle_each_1(now, me.n, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies,
                p_delays, p_texts, p_fractions);
            letters := settled.letters;
            rung := settled.rung;
            next_due := (nb.promote_1(now, 10000, p_scheduled_floor)).next_due;
        END IF;
        IF locked IS NOT NULL THEN
            rung := rung || nb.open_gate_1(settled.ended);
        END IF;
    END IF;
    IF is_new AND next_due <= now THEN
        next_due := (nb.promote_1(now, 10000, p_scheduled_floor)).next_due;
    END IF;
    IF is_new AND NOT me.limited AND NOT me.pausing AND NOT bounded AND cardinality(p_queues) BETWEEN 1 AND 64 THEN
        SELECT count(*) AS many, min(l.id) AS id, min(coalesce(l.home, l.id)) AS home, min(l.rank) AS rank,
            bool_or(l.late) AS late, min(l.queue) AS queue, min(l.name) AS name
        INTO lane FROM nb.lane l WHERE l.queue = ANY (p_queues) AND l.name = ANY (p_names);
        IF lane.many = 1 THEN
            FOR i IN 1..cardinality(p_queues) LOOP
                IF p_queues[i] = lane.queue AND p_names[i] = lane.name THEN
                    place := i;
                END IF;
            END LOOP;
        END IF;
    END IF;
    IF place IS NOT NULL THEN  -- one lane: what is done below, in fewer steps
        floor := p_floors[array_position(p_floor_lanes, lane.id)];
        IF lane.late OR floor > now OR floor IS NULL THEN
            floor := -9223372036854775808;
        END IF;
        most := LEAST(p_total, p_caps[place]);
        SELECT r.due INTO head FROM nb.ready r WHERE r.lane = lane.id AND r.due >= floor
        ORDER BY r.due, r.seq LIMIT 1;
        IF head IS NOT NULL AND most > 0 THEN
            WITH t AS (
                DELETE FROM nb.ready r WHERE r.ctid = ANY (ARRAY(
                    SELECT r.ctid FROM nb.ready r WHERE r.lane = lane.id AND r.due >= floor
                    ORDER BY r.due, r.seq LIMIT most FOR UPDATE SKIP LOCKED
                )) RETURNING r.due, r.seq, r.tried,
                    CASE WHEN r.tried > 0 THEN nb.past_of_1(r.seq) END AS p
            ), l AS (
                INSERT INTO nb.lease (seq, due, at, number, session, lane, place, fence, failures, lost, tried,
                    noted, nonce, settled)
                SELECT t.seq, t.due, now, p_number, me.n, lane.home, 1, coalesce((t.p).fence, 0) + 1,
                    coalesce((t.p).failures, 0), coalesce((t.p).lost, 0), t.tried,
                    coalesce((t.p).noted, 0::int2), p_nonce, (t.p).settled
                FROM t
            )
            SELECT array_agg(t.seq), bool_or(t.tried > 0) INTO seqs, any_tried FROM t;
            IF any_tried THEN
                RETURN QUERY
                SELECT 1, l.seq, l.due, j.created, l.lane, l.fence, l.failures, l.lost, j.id, j.options,
                    j.payload, NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::text[],
                    NULL::int4[], NULL::int4[], NULL::int8[]
                FROM nb.lease l, LATERAL (SELECT * FROM nb.job j WHERE j.seq = l.seq OFFSET 0) j
                WHERE l.session = me.n AND l.seq = ANY (seqs);
            ELSIF seqs IS NOT NULL THEN
                RETURN QUERY
                SELECT 1, j.seq, j.due, j.created, j.lane, 1, 0, 0, j.id, j.options,
                    j.payload, NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::text[],
                    NULL::int4[], NULL::int4[], NULL::int8[]
                FROM nb.job j WHERE j.seq = ANY (seqs);
            END IF;
            handed := seqs IS NOT NULL;
            SELECT r.due INTO head FROM nb.ready r WHERE r.lane = lane.id AND r.due >= floor
            ORDER BY r.due, r.seq LIMIT 1;
        END IF;
        ids := ARRAY[lane.id];
        heads := ARRAY[head];
        IF head IS NOT NULL THEN
            waiting := ARRAY[place];
        END IF;
        IF handed THEN
            homes := ARRAY[lane.home];
            ranks := ARRAY[lane.rank];
            queues := ARRAY[lane.queue];
            names := ARRAY[lane.name];
        END IF;
    ELSIF cardinality(p_queues) > 0 OR NOT is_new THEN
        lines := nb.open_lines_1(now, p_queues, p_names, p_levels, locked, p_floor_lanes, p_floors);
        ids := lines.ids;
        heads := nb.heads_1(ids, lines.floors);
        IF NOT is_new THEN
            RETURN QUERY SELECT * FROM nb.repeat_1(me.n, p_number);
            IF FOUND THEN
                SELECT * INTO homes, ranks, queues, names FROM nb.lanes_of_1(me.n, p_number);
            END IF;
        ELSIF p_total > 0 AND array_remove(heads, NULL) <> '{}' THEN
            counts := nb.look_1(p_total, now, p_ageing, ids, lines.groups, lines.ranks, lines.levels,
                lines.floors, lines.rooms, p_queues, p_names, p_caps);
            IF bounded THEN
                RETURN QUERY SELECT * FROM nb.take_bounded_1(now, me.n, p_number, p_nonce, p_ageing, ids,
                    lines.homes, lines.groups, lines.ranks, lines.levels, lines.floors, counts, p_max_bytes);
            ELSE
                RETURN QUERY SELECT * FROM nb.take_1(now, me.n, p_number, p_nonce, p_ageing, ids,
                    lines.homes, lines.groups, lines.ranks, lines.levels, lines.floors, counts);
            END IF;
            IF FOUND THEN
                homes := lines.homes;
                ranks := lines.ranks;
                queues := lines.queues;
                names := lines.names;
                heads := nb.heads_1(ids, lines.floors);
                IF locked IS NOT NULL THEN
                    PERFORM nb.fill_gates_1(me.n, p_number);
                END IF;
            END IF;
        END IF;
        waiting := nb.waiting_1(lines.groups, heads, me.limited, p_names);
    END IF;
    IF is_new THEN
        WITH old AS (
            DELETE FROM nb.turn t WHERE t.session = me.n AND t.number = p_number - 2
        )
        INSERT INTO nb.turn (session, number, nonce, results) VALUES (me.n, p_number, p_nonce, letters);
    END IF;
    RETURN NEXT CAST(ROW(
        0, now, next_due, pg_current_xact_id()::text::int8 + 1, NULL,
        CASE WHEN p_now IS NULL THEN LEAST(now - early, 2000000000) ELSE 0 END, NULL, NULL, nonce,
        letters, NULL, me.since, homes, queues, names, ranks,
        CASE WHEN rung IS NOT NULL THEN nb.queues_of_1(rung) END, ids, waiting, heads
    ) AS nb.reply);
END $$;
