-- Enqueue: store jobs. The call is idempotent by job id, and it decides about unique keys. backends/planning/enqueue.py
-- decides the same in Python.
--
-- `enqueue_one` and `enqueue_plain` are fast paths. If they do not apply, they store nothing and return false, and the
-- caller calls `enqueue`. `enqueue` stores all jobs at once. If an id or a unique key exists, it stores them job by job
-- (`enqueue_each`).
-- Atomic: one transaction. Whether a job of an id has ended is checked after the insert, because the insert waits for a
-- transaction that is ending such a job. Unique keys are locked in their order before they are read.
-- Outside of a caller's transaction, an enqueue waits at most 200 ms for a transaction that enqueued the same id or unique key.
-- Then it fails; the client stores the other jobs of the call, and repeats this one. An enqueue that waits holds no lock that
-- exchanges need.

-- name: enqueue_one
-- Store one new job that is due now and has no unique key. It does less work than `enqueue_1`.
-- Inputs: the time or NULL; queue, name and rank; id, digest, payload, options (NULL: none); the earliest time at which
--   a job of this id can have ended
-- Result: whether the job was stored. False: its lane is new or its id may exist; nothing was stored, and the caller
--   must call `enqueue_1`. If `job` has the id, the call may fail with `unique_violation`, which means the same. ON CONFLICT would avoid this
--   error, but writes 48 bytes more to the WAL for each job.
-- An id of a caller is looked up before the insert, because callers repeat them. One that nimburion generated (a time is known
--   for it) is not: only a call whose reply was lost is repeated.
-- Atomic: as `enqueue_1`
CREATE OR REPLACE FUNCTION {schema}.enqueue_one_1(
    p_now int8, p_queue text, p_name text, p_rank int2, p_id bytea, p_digest bytea, p_payload bytea,
    p_options text, p_since int8
) RETURNS bool
LANGUAGE plpgsql
SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off SET lock_timeout TO '200ms' AS $$
DECLARE
    now int8;
    at_lane int4;
    new_seq int8;
BEGIN
    IF p_since = {schema}.get_lowest_time_1() THEN
        IF EXISTS (SELECT FROM {schema}.job j WHERE j.id = p_id) THEN
            RETURN false;
        END IF;
    END IF;
    SELECT l.id INTO at_lane FROM {schema}.lane l
    WHERE l.queue = split_part(p_queue, E'\n', 1) AND l.name = p_name AND l.tenant = split_part(p_queue, E'\n', 2)
        AND l.rank = p_rank AND NOT l.is_late;
    IF at_lane IS NULL OR at_lane < 0 AND NOT {schema}.lock_tenant_lanes_1(ARRAY[at_lane]) THEN
        RETURN false;
    END IF;
    -- `get_write_time_1` does the same. An expression with functions of the server alone is no statement.
    now := CASE WHEN pg_current_xact_id() IS NOT NULL
        THEN coalesce(p_now, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8)) END;
    INSERT INTO {schema}.job (due, created_at, lane, id, digest, options, payload)
    VALUES (now, now, at_lane, p_id, p_digest, p_options, p_payload)
    RETURNING seq INTO new_seq;
    INSERT INTO {schema}.ready (due, seq, lane, attempt_status) VALUES (now, new_seq, at_lane, 0);
    -- The upper bound excludes the partitions of future days: a look-up in each costs 2 µs.
    IF EXISTS (
        SELECT FROM {schema}.finished_job d
        WHERE d.id = p_id AND d.finished_at >= p_since AND d.finished_at < now + 86400000000
    ) THEN
        PERFORM {schema}.undo_insert_1(ARRAY[new_seq]);
        RETURN false;
    END IF;
    RETURN true;
END $$;

-- name: enqueue_plain
-- Store new jobs that are due now, have no options, and have ids that nimburion generated.
-- Inputs:
--   p_now                        the time or NULL
--   p_queues, p_names, p_ranks   the lanes
--   p_lanes                      the index of the lane of each job; NULL: all are in the first lane
--   p_ids, p_digests             the concatenated ids (17 bytes each) and digests (16 bytes each)
--   p_least, p_greatest          the least and the greatest id
--   p_payloads, p_ends           the concatenated payloads, and the offset at which each one ends, after a first 0
--   p_since                      the earliest time at which a job of one of these ids can have ended
-- Result: whether the jobs were stored. False: an id may exist; nothing was stored, and the caller must call `enqueue_1`.
-- Atomic: as `enqueue_1`. A client may call it several times in one transaction.
CREATE OR REPLACE FUNCTION {schema}.enqueue_plain_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea,
    p_digests bytea, p_least bytea, p_greatest bytea, p_payloads bytea, p_ends int4[], p_since int8
) RETURNS bool
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan SET lock_timeout TO '200ms' AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    lane_ids int4[] := {schema}.get_or_create_lanes_1(p_queues, p_names, p_ranks);
    many int4 := cardinality(p_ends) - 1;
BEGIN
    WITH j AS (
        INSERT INTO {schema}.job (due, created_at, lane, id, digest, payload)
        SELECT now, now, lane_ids[coalesce(p_lanes[n], 1)], substr(p_ids, n * 17 - 16, 17),
            substr(p_digests, n * 16 - 15, 16), substr(p_payloads, p_ends[n] + 1, p_ends[n + 1] - p_ends[n])
        FROM generate_series(1, many) n
        RETURNING seq, lane
    )
    INSERT INTO {schema}.ready (due, seq, lane, attempt_status) SELECT now, seq, lane, 0 FROM j;
    -- Ids that were generated together are adjacent: normally no other id is between them.
    IF EXISTS (SELECT FROM {schema}.finished_job d WHERE d.id BETWEEN p_least AND p_greatest AND d.finished_at >= p_since)
        AND EXISTS (
            SELECT FROM {schema}.finished_job d
            WHERE d.id = ANY (ARRAY(SELECT substr(p_ids, n * 17 - 16, 17) FROM generate_series(1, many) n))
                AND d.finished_at >= p_since
        )
    THEN
        RAISE unique_violation;
    END IF;
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END $$;

-- name: enqueue
-- Store new jobs: all at once if possible, else job by job.
-- Inputs:
--   p_now                        the time or NULL
--   p_queues, p_names, p_ranks   the lanes
--   p_lanes                      for each job the index of its lane
--   p_ids, p_digests, p_payloads for each job its id, digest and payload
--   p_options                    for each job its options (JSON); NULL: no job has options
--   p_ats                        for each job its due time; NULL: no job has one
--   p_afters                     for each job its delay in microseconds; NULL: no job has one
--   p_keys, p_spans              for each job its unique key, and for how many microseconds it holds the key (NULL: until
--                                it is finished). These and the next three are NULL if no job has a key.
--   p_states                     for each job the states in which it holds its key, with commas between; NULL: each
--   p_on_duplicate               for each job what happens if its key is held: reject, existing or replace
--   p_max_waits                  for each job that replaces another: after how many microseconds since its first enqueue that
--                                one is due at the latest; NULL: no limit
--   p_since                      the earliest time at which a job of one of these ids can have ended
-- Result:
--   codes                        one letter for each job: c created, e exists, p replaced, x conflict, t key is taken, r refused
--                                because of another job; NULL: all were created
--   holders                      the ids of the jobs that hold the keys, or that were replaced
-- Locks: unique keys in the order of name and key, then the waiting jobs that hold them and the rows that it inserts
-- Atomic: one transaction. Whether a job of an id has ended is checked after the insert, because the insert waits for a
--   transaction that is ending such a job.
CREATE OR REPLACE FUNCTION {schema}.enqueue_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[],
    p_digests bytea[], p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[],
    p_keys text[], p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8,
    OUT codes text, OUT holders bytea[]
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    lane_ids int4[] := {schema}.get_or_create_lanes_1(p_queues, p_names, p_ranks);
BEGIN
    IF p_keys IS NULL AND (p_ats IS NULL OR NOT EXISTS (SELECT FROM unnest(p_ats) a WHERE a < now))
    THEN
        BEGIN
            WITH inserted AS (
                INSERT INTO {schema}.job (due, created_at, lane, id, digest, options, payload)
                SELECT coalesce(job.at, now + coalesce(job.after, 0)), now, lane_ids[job.lane], job.id,
                    job.digest, job.options, job.payload
                FROM unnest(p_lanes, p_ids, p_digests, p_options, p_payloads, p_ats, p_afters)
                    AS job (lane, id, digest, options, payload, at, after)
                RETURNING seq, due, lane
            ), delayed AS (
                INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status)
                SELECT due, seq, lane, 0 FROM inserted WHERE due > now
            )
            INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
            SELECT due, seq, lane, 0 FROM inserted WHERE due <= now;
            IF NOT EXISTS (SELECT FROM {schema}.finished_job d WHERE d.id = ANY (p_ids) AND d.finished_at >= p_since) THEN
                RETURN;
            END IF;
            RAISE unique_violation;
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END IF;
    SELECT c.codes, c.holders INTO codes, holders FROM {schema}.enqueue_each_1(
        now, p_names, lane_ids, p_lanes, p_ids, p_digests, p_payloads, p_options, p_ats, p_afters,
        p_keys, p_spans, p_states, p_on_duplicate, p_max_waits, p_since
    ) c;
END $$;

-- name: enqueue_each
-- Store new jobs one by one. Used when an id may exist or a unique key may be held.
-- Inputs: as for `enqueue_1`, with the time as a value and the numbers of the lanes; for each job its flow as in `job`, and whether
--   it is suspended (an element that is NULL: its flow has ended, so it was stored before). NULL: no job is in a flow
-- Result: a code for each job, and the ids of the jobs that hold the keys or were replaced
-- Locks: as `enqueue_1`
-- Atomic: one transaction. The keys are locked before they are read. If another transaction has just ended a job of one
--   of the ids, the call fails with a serialization failure, and the caller must repeat it. Jobs are replaced after
--   everything is decided. A refused call is undone by a savepoint, so it keeps no lock in a caller's transaction.
CREATE OR REPLACE FUNCTION {schema}.enqueue_each_1(
    p_now int8, p_names text[], p_lane_ids int4[], p_lanes int4[], p_ids bytea[], p_digests bytea[],
    p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[], p_keys text[],
    p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8,
    p_flows int8[] DEFAULT NULL, p_waits bool[] DEFAULT NULL, OUT codes text, OUT holders bytea[]
) LANGUAGE plpgsql AS $$
DECLARE
    job record;
    code text;
    code_list text[];
    key_holder bytea;
    held {schema}.unique_key;
    known bytea;
    new_seq int8;
    seqs int8[];
    dues int8[];
    lanes int4[];
    suspends bool[];
    waiting record;
    fresh_ids bytea[];
    replacing int4[];  -- the places of the jobs that replace another one
BEGIN
    BEGIN
        PERFORM {schema}.lock_unique_keys_1(p_now, p_names, p_lanes, p_ids, p_keys);
        FOR job IN
            SELECT u.*, p_names[u.lane] AS name, p_lane_ids[u.lane] AS lane_id
            FROM unnest(p_lanes, p_ids, p_digests, p_options, p_payloads, p_ats, p_afters, p_keys, p_spans, p_states,
                    p_on_duplicate) WITH ORDINALITY
                AS u (lane, id, digest, options, payload, at, after, key, span, states, on_duplicate, place)
        LOOP
            code := NULL;
            key_holder := NULL;
            known := {schema}.find_digest_1(job.id, p_since);
            IF known IS NULL AND p_waits IS NOT NULL AND p_waits[CAST(job.place AS int4)] IS NULL THEN
                known := job.digest;
            ELSIF known IS NOT NULL AND p_waits IS NOT NULL AND NOT {schema}.is_in_same_flow_1(job.id, job.options, p_since) THEN
                known := '';
            END IF;
            IF known IS NOT NULL THEN
                code := CASE WHEN known = job.digest THEN 'e' ELSE 'x' END;
            ELSIF job.key IS NOT NULL THEN
                IF job.on_duplicate = 'replace' THEN
                    SELECT r.job_id, r.digest INTO key_holder, known FROM {schema}.replacement r
                    WHERE r.id = job.id AND r.valid_until > p_now;
                    IF NOT FOUND THEN
                        SELECT holders[n], p_digests[n] INTO key_holder, known FROM unnest(replacing) n WHERE p_ids[n] = job.id;
                    END IF;
                END IF;
                IF known IS NOT NULL THEN
                    code := CASE WHEN known = job.digest THEN 'p' ELSE 'x' END;
                    key_holder := CASE WHEN code = 'p' THEN key_holder END;
                ELSE
                    SELECT * INTO held FROM {schema}.unique_key u WHERE u.name = job.name AND u.key = job.key AND u.seq <> 0;
                    IF held.seq >= seqs[1] OR {schema}.holds_key_1(p_now, held) THEN
                        key_holder := held.id;
                        code := CASE job.on_duplicate WHEN 'existing' THEN 'e' WHEN 'replace' THEN 'p' ELSE 't' END;
                        IF code = 'p' THEN
                            IF held.seq >= seqs[1]
                                OR {schema}.lock_holder_1(p_now, held.id) IN ('pending', 'scheduled', 'retrying')
                            THEN
                                replacing := replacing || CAST(job.place AS int4);
                            ELSE
                                code := 't';
                            END IF;
                        END IF;
                    END IF;
                END IF;
            END IF;
            IF code IS NULL THEN
                code := 'c';
                new_seq := {schema}.insert_job_1(p_now, job.lane_id, job.id, job.digest, job.payload, job.options,
                    coalesce(job.at, p_now + coalesce(job.after, 0)), job.key, p_flows[CAST(job.place AS int4)]);
                seqs := seqs || new_seq;
                dues := dues || coalesce(job.at, p_now + coalesce(job.after, 0));
                lanes := lanes || job.lane_id;
                suspends := suspends || (p_waits IS NOT NULL AND p_waits[CAST(job.place AS int4)]);
                fresh_ids := fresh_ids || job.id;
                UPDATE {schema}.unique_key SET seq = new_seq, id = job.id, valid_until = p_now + job.span,
                    states = string_to_array(job.states, ',')
                WHERE name = job.name AND key = job.key;
            END IF;
            code_list := code_list || code;
            holders := holders || key_holder;
        END LOOP;
        IF EXISTS (
            SELECT FROM {schema}.finished_job d
            WHERE d.id = ANY (fresh_ids) AND {schema}.find_digest_1(d.id, p_since, true) IS NOT NULL
        ) THEN
            RAISE EXCEPTION 'a job of this id ended meanwhile; repeat the call' USING ERRCODE = '40001';
        END IF;
        IF code_list && ARRAY['x', 't'] THEN
            RAISE EXCEPTION 'the call is refused' USING ERRCODE = 'NB002';
        END IF;
        INSERT INTO {schema}.dependent (seq, flow, root, lane, id)
        SELECT w.seq, j.flow, coalesce(f.root, f.number), w.lane, j.id
        FROM unnest(seqs, lanes, suspends) AS w (seq, lane, suspends) JOIN {schema}.job j ON j.seq = w.seq
        LEFT JOIN {schema}.flow f ON f.number = abs(j.flow) WHERE w.suspends;
        FOR waiting IN SELECT * FROM unnest(seqs, dues, lanes, suspends) AS w (seq, due, lane, suspends) WHERE NOT w.suspends LOOP
            PERFORM {schema}.make_waiting_1(p_now, waiting.seq, waiting.due, waiting.lane, 0::int2);
        END LOOP;
        FOR job IN SELECT n, p_lanes[n] AS lane FROM unnest(replacing) n LOOP
            PERFORM {schema}.replace_job_1(p_now, holders[job.n], p_ids[job.n], p_lane_ids[job.lane], p_names[job.lane],
                p_digests[job.n], p_payloads[job.n], p_options[job.n],
                coalesce(p_ats[job.n], p_now + coalesce(p_afters[job.n], 0)), p_keys[job.n], p_spans[job.n],
                p_states[job.n], p_max_waits[job.n], p_flows[job.n]);
        END LOOP;
        DELETE FROM {schema}.unique_key WHERE seq = 0
            AND (name, key) IN (SELECT p_names[u.lane], u.key FROM unnest(p_lanes, p_keys) AS u (lane, key));
    EXCEPTION WHEN SQLSTATE 'NB002' THEN
        SELECT array_agg(CASE WHEN l IN ('x', 't') THEN l ELSE 'r' END ORDER BY place),
            array_agg(CASE WHEN l IN ('x', 't') THEN holder END ORDER BY place)
        INTO code_list, holders
        FROM unnest(code_list, holders) WITH ORDINALITY AS a (l, holder, place);
    END;
    codes := array_to_string(code_list, '');
END $$;

-- name: holds_key
-- Decide whether a job holds a unique key now.
-- Inputs: the time; the row of the key, which the caller has locked
-- Result: whether the key is valid, and its job is in one of the states in which it holds the key. The row may name a job that
--   has ended, because the end of a job does not wait for a transaction that has locked the key (`free_unique_keys_1`).
-- Locks: the job that holds the key, if it waits and the key depends on its state
CREATE OR REPLACE FUNCTION {schema}.holds_key_1(p_now int8, p_key {schema}.unique_key) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    IF p_key.seq IS NULL OR p_key.valid_until <= p_now THEN
        RETURN false;
    END IF;
    IF p_key.states IS NOT NULL THEN
        RETURN coalesce({schema}.lock_holder_1(p_now, p_key.id) = ANY (p_key.states), false);
    END IF;
    RETURN p_key.valid_until IS NOT NULL OR EXISTS (SELECT FROM {schema}.job j WHERE j.seq = p_key.seq)
        AND NOT EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = p_key.seq);
END $$;

-- name: lock_holder
-- Lock a waiting job, so that it neither starts nor ends before the transaction does.
-- Inputs: the time; the id of the job, whose unique key the caller has locked
-- Result: the state of the job; NULL: there is no such job
-- Locks: the row of the job in `ready`, `scheduled` or `parked`; none if the job does not wait
-- Atomic: each attempt is one step. An attempt fails only if the job changes its state at that moment, so the loop ends.
CREATE OR REPLACE FUNCTION {schema}.lock_holder_1(p_now int8, p_id bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    holder record;
BEGIN
    LOOP
        SELECT r.seq, r.lane, r.due, r.status, r.failures INTO holder FROM {schema}.job_record r WHERE r.id = p_id;
        IF holder.status IS DISTINCT FROM 'waiting' THEN
            RETURN holder.status;
        END IF;
        PERFORM FROM {schema}.scheduled s WHERE s.due = holder.due AND s.seq = holder.seq FOR UPDATE;
        IF NOT FOUND THEN
            PERFORM FROM {schema}.ready r, {schema}.lane a, {schema}.lane b
            WHERE a.id = holder.lane AND b.queue = a.queue AND b.name = a.name AND b.tenant = a.tenant
                AND b.rank = a.rank AND r.lane = b.id AND r.due = holder.due AND r.seq = holder.seq
            FOR UPDATE OF r;
        END IF;
        IF NOT FOUND THEN
            PERFORM FROM {schema}.parked k WHERE k.seq = holder.seq FOR UPDATE;
        END IF;
        IF FOUND THEN
            RETURN {schema}.get_state_1(holder.status, holder.failures, holder.due, p_now);
        END IF;
    END LOOP;
END $$;

-- name: replace_job
-- Give a waiting job what a new job of the same unique key brings. Record it, so that a repeated call is recognised.
-- Inputs: the time; the id of the waiting job; id, number and job name of the lane, digest, payload, options, due time, unique
--   key, its span and states of the new job; after how many microseconds since its first enqueue the job is due at the latest
--   (NULL: no limit); its flow
-- Locks: the rows of the job. The caller has locked the key, and the job in `ready` or `scheduled`.
-- Atomic: the row in `ready` or `scheduled` is deleted and another is inserted. An exchange whose snapshot is older then finds
--   neither, so it cannot lease the job with its old payload.
CREATE OR REPLACE FUNCTION {schema}.replace_job_1(
    p_now int8, p_holder bytea, p_id bytea, p_lane int4, p_name text, p_digest bytea, p_payload bytea, p_options text,
    p_due int8, p_key text, p_span int8, p_states text, p_max_wait int8, p_flow int8
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    old record;
    new_due int8;
    was_removed bool;
BEGIN
    SELECT j.seq, j.lane, j.created_at, coalesce(t.due, j.due) AS due, t.failures INTO STRICT old
    FROM {schema}.job j LEFT JOIN {schema}.attempt_state t ON t.seq = j.seq WHERE j.id = p_holder;
    was_removed := {schema}.remove_waiting_1(old.lane, old.due, old.seq, false);
    IF was_removed THEN
        PERFORM {schema}.pass_turns_1(p_now, old.seq, old.lane);
    ELSE
        DELETE FROM {schema}.parked k WHERE k.seq = old.seq;
    END IF;
    new_due := p_due;
    IF p_max_wait IS NOT NULL THEN
        new_due := LEAST(p_due, GREATEST(p_now, old.created_at + p_max_wait));
    END IF;
    IF old.failures > 0 THEN
        new_due := GREATEST(new_due, old.due);
    END IF;
    UPDATE {schema}.job SET due = new_due, lane = p_lane, options = p_options, payload = p_payload, flow = p_flow
    WHERE seq = old.seq;
    UPDATE {schema}.attempt_state SET due = new_due WHERE seq = old.seq;
    PERFORM {schema}.make_waiting_1(p_now, old.seq, new_due, p_lane,
        CAST(CASE WHEN old.failures > 0 THEN 2 WHEN old.failures = 0 THEN 1 ELSE 0 END AS int2));
    UPDATE {schema}.unique_key SET valid_until = p_now + p_span, states = string_to_array(p_states, ',')
    WHERE name = p_name AND key = p_key;
    INSERT INTO {schema}.replacement (id, job_id, digest, valid_until)
    VALUES (p_id, p_holder, p_digest, p_now + 600000000)
    ON CONFLICT (id) DO UPDATE SET job_id = excluded.job_id, digest = excluded.digest, valid_until = excluded.valid_until;
END $$;

-- name: lock_unique_keys
-- Lock the unique keys of jobs that are being enqueued. A key without a holder gets a row with seq 0.
-- Inputs: the time; the names of the lanes; for each job its lane, id and key
-- Locks: the keys in the order of name and key, until the transaction ends
-- Atomic: one statement. An insert that finds an existing row locks that row.
CREATE OR REPLACE FUNCTION {schema}.lock_unique_keys_1(
    p_now int8, p_names text[], p_lanes int4[], p_ids bytea[], p_keys text[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO {schema}.unique_key AS u (name, key, seq, valid_until, id)
    SELECT DISTINCT ON (p_names[job.lane], job.key) p_names[job.lane], job.key, 0, CAST(NULL AS int8), job.id
    FROM unnest(p_lanes, p_ids, p_keys) AS job (lane, id, key)
    WHERE job.key IS NOT NULL
    ORDER BY p_names[job.lane], job.key
    ON CONFLICT (name, key) DO UPDATE SET seq = CASE WHEN u.valid_until <= p_now THEN 0 ELSE u.seq END;
END $$;

-- name: find_digest
-- Return the digest of the job with an id.
-- Inputs: the id; the earliest time at which such a job can have ended; whether only finished jobs are searched
-- Result: the digest; NULL: there is no such job
-- Atomic: a job ends in one step. A caller that needs certainty calls it again after its insert.
CREATE OR REPLACE FUNCTION {schema}.find_digest_1(p_id bytea, p_since int8, p_ended bool DEFAULT false) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
    known bytea;
BEGIN
    IF NOT p_ended THEN
        SELECT j.digest INTO known FROM {schema}.job j WHERE j.id = p_id;
        IF FOUND THEN
            RETURN known;
        END IF;
    END IF;
    SELECT d.digest INTO known FROM {schema}.finished_job d, {schema}.horizon h
    WHERE d.id = p_id AND d.finished_at >= p_since
        AND h.what = 'completed' AND (d.finished_at, d.seq) > (h.finished_at, h.seq)
    LIMIT 1;
    RETURN known;
END $$;

-- name: insert_job
-- Store the row of one new job in `job`.
-- Inputs: the time; lane, id, digest, payload, options, due time, unique key and flow of the job
-- Result: its seq; the caller adds it to `ready` or `scheduled` (`make_waiting_1`)
CREATE OR REPLACE FUNCTION {schema}.insert_job_1(
    p_now int8, p_lane int4, p_id bytea, p_digest bytea, p_payload bytea, p_options text, p_due int8,
    p_key text, p_flow int8
) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    new_seq int8;
BEGIN
    INSERT INTO {schema}.job (due, created_at, lane, id, digest, unique_key, flow, options, payload)
    VALUES (p_due, p_now, p_lane, p_id, p_digest, p_key, p_flow, p_options, p_payload)
    ON CONFLICT (id) DO NOTHING
    RETURNING seq INTO new_seq;
    IF new_seq IS NULL THEN
        RAISE EXCEPTION 'a job of this id was stored meanwhile; repeat the call' USING ERRCODE = '40001';
    END IF;
    RETURN new_seq;
END $$;

-- name: undo_insert
-- Delete jobs that the current transaction has stored.
-- Inputs: their seqs
-- Locks: only rows that no other transaction can see
-- Atomic: part of the transaction that stored the jobs
CREATE OR REPLACE FUNCTION {schema}.undo_insert_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    inserted record;
BEGIN
    FOR inserted IN DELETE FROM {schema}.job WHERE seq = ANY (p_seqs) RETURNING seq, due, lane LOOP
        PERFORM {schema}.remove_waiting_1(inserted.lane, inserted.due, inserted.seq);
    END LOOP;
    DELETE FROM {schema}.unique_key WHERE seq = ANY (p_seqs);
END $$;

-- name: enqueue_in_flow
-- Store new jobs in a caller's transaction, and their flows if there are any.
-- Inputs: as for `enqueue_1`; the graph, as for `enqueue_flow_1` (NULL: there are no flows)
-- Result: as of `enqueue_flow_1`
-- Locks: as `enqueue_1`; flows, as `enqueue_flow_1`
CREATE OR REPLACE FUNCTION {schema}.enqueue_in_flow_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[],
    p_digests bytea[], p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[],
    p_keys text[], p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8, p_graph json,
    OUT codes text, OUT holders bytea[], OUT unknown text, OUT other text
) LANGUAGE plpgsql AS $$
BEGIN
    IF p_graph IS NULL THEN
        SELECT e.codes, e.holders INTO codes, holders FROM {schema}.enqueue_1(p_now, p_queues, p_names, p_ranks, p_lanes, p_ids,
            p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_spans, p_states, p_on_duplicate, p_max_waits, p_since) e;
    ELSE
        SELECT e.codes, e.holders, e.unknown, e.other INTO codes, holders, unknown, other FROM {schema}.enqueue_flow_1(
            p_now, p_queues, p_names, p_ranks, p_lanes, p_ids, p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_spans,
            p_states, p_on_duplicate, p_max_waits, p_since, p_graph, false) e;
    END IF;
END $$;

-- name: enqueue_in_caller
-- Store new jobs in a caller's transaction. The arguments are only texts, bytes and numbers, so any driver can pass them.
-- Inputs:
--   p_now         the time or NULL
--   p_identity    the identity of the backend that the caller means
--   p_channel     the notification channel
--   p_fields      a JSON array of the arguments of `enqueue_1` after the time, and the graph of `enqueue_flow_1` if there are
--                 flows. Ids and digests are hexadecimal. The payloads are replaced by [position from 1, length] pairs.
--   p_payloads    the concatenated payloads
-- Result: as `enqueue_1`, with the holders as a JSON array. Two texts can take the place of the codes:
--   'other database'   the database belongs to another backend
--   'new lane'         a lane is new, and nothing was stored. The caller must create it with `create_lanes_1` in a separate
--                      transaction. Otherwise other enqueues in this lane would wait for the caller's transaction to end.
--                      Above READ COMMITTED it is returned only for a late lane, for which exchanges would wait. The caller's
--                      snapshot does not see the new lane, so the caller must run its transaction again.
-- The numbers of new jobs are stored as rows of `statistics` with the step 0, for `take_enqueue_counts`.
-- Locks: as `enqueue_1`, until the caller's transaction ends
-- Atomic: part of the caller's transaction. A refused call has written nothing.
CREATE OR REPLACE FUNCTION {schema}.enqueue_in_caller_1(
    p_now int8, p_identity text, p_channel text, p_fields text, p_payloads bytea,
    OUT codes text, OUT holders text, OUT unknown text, OUT other text
) LANGUAGE plpgsql AS $$
DECLARE
    f json := p_fields;
    found record;
    sees_new_lanes bool := current_setting('transaction_isolation') = 'read committed';
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.meta WHERE identity = p_identity) THEN
        codes := 'other database';
        RETURN;
    END IF;
    IF EXISTS (
        SELECT FROM unnest({schema}.decode_text_array_1(f -> 0), {schema}.decode_text_array_1(f -> 1),
            CAST({schema}.decode_text_array_1(f -> 2) AS int2[]))
            AS w (queue, name, rank), generate_series(
                CASE WHEN sees_new_lanes THEN 0 ELSE 1 END,
                CASE WHEN f ->> 8 IS NOT NULL AND (sees_new_lanes OR EXISTS (
                    SELECT FROM json_array_elements_text(f -> 8) at
                    WHERE CAST(at AS int8) < {schema}.get_read_time_1(p_now)
                )) THEN 1 ELSE 0 END
            ) n
        WHERE NOT EXISTS (
            SELECT FROM {schema}.lane l WHERE l.queue = split_part(w.queue, E'\n', 1) AND l.name = w.name
                AND l.tenant = split_part(w.queue, E'\n', 2) AND l.rank = w.rank
                AND (l.is_late = (n = 1) OR l.tenant <> '')
        )
    ) THEN
        codes := 'new lane';
        RETURN;
    END IF;
    SELECT e.* INTO found FROM {schema}.enqueue_in_flow_1(
        p_now, {schema}.decode_text_array_1(f -> 0), {schema}.decode_text_array_1(f -> 1),
            CAST({schema}.decode_text_array_1(f -> 2) AS int2[]),
        CAST({schema}.decode_text_array_1(f -> 3) AS int4[]), {schema}.decode_hex_array_1(f -> 4),
            {schema}.decode_hex_array_1(f -> 5),
        ARRAY(
            SELECT substr(p_payloads, CAST(p ->> 0 AS int4), CAST(p ->> 1 AS int4))
            FROM json_array_elements(f -> 6) p
        ),
        {schema}.decode_text_array_1(f -> 7), CAST({schema}.decode_text_array_1(f -> 8) AS int8[]),
            CAST({schema}.decode_text_array_1(f -> 9) AS int8[]),
        {schema}.decode_text_array_1(f -> 10), CAST({schema}.decode_text_array_1(f -> 11) AS int8[]),
            {schema}.decode_text_array_1(f -> 12), {schema}.decode_text_array_1(f -> 13),
            CAST({schema}.decode_text_array_1(f -> 14) AS int8[]),
        CAST(f ->> 15 AS int8), f -> 16
    ) e;
    unknown := found.unknown;
    other := found.other;
    IF unknown IS NOT NULL OR other IS NOT NULL THEN
        RETURN;
    END IF;
    INSERT INTO {schema}.statistics (step, start, queue, name, source, counters)
    SELECT 0, {schema}.get_read_time_1(p_now) / 1000000, w.queue, w.name, CAST(gen_random_uuid() AS text),
        CAST(json_build_object('enqueued', w.count) AS text)
    FROM (
        SELECT split_part(l.queue, E'\n', 1) AS queue, l.name, count(*) AS count
        FROM unnest(CAST({schema}.decode_text_array_1(f -> 3) AS int4[])) WITH ORDINALITY AS j (lane, number)
        JOIN unnest({schema}.decode_text_array_1(f -> 0), {schema}.decode_text_array_1(f -> 1))
            WITH ORDINALITY AS l (queue, name, number) ON l.number = j.lane
        WHERE found.codes IS NULL OR substr(found.codes, CAST(j.number AS int4), 1) = 'c'
        GROUP BY 1, 2
    ) w;
    codes := found.codes;
    holders := to_json(ARRAY(SELECT encode(h, 'hex') FROM unnest(found.holders) h));
    IF codes IS NULL OR codes ~ '[cp]' THEN
        PERFORM {schema}.notify_queues_1(p_channel, ARRAY(
            SELECT l.queue FROM unnest(CAST({schema}.decode_text_array_1(f -> 3) AS int4[])) j (lane)
            JOIN unnest({schema}.decode_text_array_1(f -> 0)) WITH ORDINALITY l (queue, number) ON l.number = j.lane
        ));
    END IF;
END $$;
