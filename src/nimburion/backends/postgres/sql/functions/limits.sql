-- Limits: lock them, count what is leased and what ends, and return parked jobs to their lanes. Then what workers declare and
-- what operators change at run time. `limit_rule` holds what is declared, and what is in force: that with the changes of whole
-- limits. A change of one key stays in `limit_change`; `list_job_keys_1` reads it with the rules. `limit_use` counts for each key.
-- `core/rate_limits.py` explains the arithmetic of rate limits. `backends/planning` decides which jobs are parked.
--
-- A limit closes lanes (`limit_rule.closes_lane`) if all jobs of a lane have the same key in it, which is ''. It has a row in
-- `limit_use` as long as it is in force. For any other limit single jobs are parked.
--
-- Locks: the rules of limits, by limit and job name (`lock_limits_1`), held until the transaction ends. The rules of a limit guard
-- all its keys: only who holds them changes `limit_use` and parks jobs of that limit. A transaction that leases jobs or ends
-- leases holds `limit_rule` in ROW SHARE. Who adds, changes or deletes a rule takes EXCLUSIVE, so that no exchange is in the middle of a
-- decision. What is declared or changed is combined by one transaction at a time, which first locks `limit_change` in SHARE ROW
-- EXCLUSIVE. Reading these tables does not wait.
-- A job is in `ready` or in `parked`, never in both.
--
-- The turn of a key: when a key gets room, the first job of each queue and name that is parked for it returns to `ready`. If the
-- exchange that considers it finds another of its keys without room, it parks the job for that key, and the next job that is
-- parked for the first key has the turn. One exchange parks up to MAX_PARKED jobs, also of those that it moves in this way.

-- name: lock_affected_limits
-- Lock the limits that an exchange changes before it plans.
-- Inputs: the time; the session; the seqs that it settles; queues and names of the requested lanes; whether to lock the limits of
--   all these names that have jobs; whether also without jobs, because some may come before the lease
-- Result: the job names whose limits are locked
-- The locked limits are those of the settled jobs, and those whose parked jobs may return to a requested lane: by a settlement,
--   because a rate allows one now, or after a change. And once a second those of requested lanes with jobs, to note the time.
-- Locks: limits. The caller has locked the table, so no limit is added.
-- Atomic: held until the transaction ends. A later statement then reads the latest state of the limits.
CREATE OR REPLACE FUNCTION {schema}.lock_affected_limits_1(
    p_now int8, p_session int4, p_seqs int8[], p_queues text[], p_names text[], p_all bool, p_also_empty bool
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    concerned text[];
    held_lanes int4[];
    held_keys int8[];
    held_limits text[];
    noted_earlier text[];
    began int8 := {schema}.get_read_time_1(NULL);
    latest int8;
BEGIN
    SELECT array_agg(held.lane), array_agg(held.number) INTO held_lanes, held_keys FROM (
        SELECT l.lane, unnest(coalesce(l.key_numbers, ARRAY[CAST(NULL AS int8)])) AS number
        FROM {schema}.lease l WHERE l.session = p_session AND l.seq = ANY (p_seqs)
    ) held;
    IF array_remove(held_keys, NULL) <> '{}' THEN
        held_limits := ARRAY(SELECT DISTINCT u.limit_name FROM {schema}.limit_use u WHERE u.number = ANY (held_keys));
    END IF;
    noted_earlier := ARRAY(
        SELECT DISTINCT k.job_name FROM {schema}.limit_rule k WHERE k.job_name = ANY (p_names) AND (k.interval IS NOT NULL OR NOT k.closes_lane)
            AND k.used_at NOT BETWEEN p_now - 1000000 AND p_now
    );
    concerned := ARRAY(
        SELECT a.name FROM {schema}.lane a WHERE a.id = ANY (held_lanes)
        UNION
        SELECT w.name FROM unnest(p_queues, p_names) AS w (queue, name)
        WHERE (p_all OR w.name = ANY (noted_earlier)) AND (p_also_empty OR EXISTS (
            SELECT FROM {schema}.lane a WHERE a.queue = w.queue AND a.name = w.name AND a.tenant = ''
                AND EXISTS (SELECT FROM {schema}.ready r WHERE r.lane = a.id OFFSET 0) OFFSET 0
        ) OR EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name OFFSET 0))
        UNION
        SELECT k.job_name FROM (
            SELECT u.limit_name FROM {schema}.limit_use u WHERE u.opens_at <= p_now ORDER BY u.opens_at OFFSET 0
        ) u JOIN {schema}.limit_rule k ON k.limit_name = u.limit_name
        WHERE k.job_name = ANY (p_names)
        UNION
        SELECT k.job_name FROM {schema}.limit_rule k
        WHERE k.limit_name = ANY (held_limits) AND k.job_name = ANY (p_names) AND EXISTS (SELECT FROM {schema}.parked)
        UNION
        SELECT c.job_name FROM {schema}.changed_limit c WHERE c.job_name = ANY (p_names)
        UNION
        SELECT c.name FROM {schema}.changed_key c WHERE c.name = ANY (p_names)
        UNION
        SELECT k.job_name FROM {schema}.limit_rule k WHERE k.job_name = ANY (p_names) AND k.used_at > p_now + 1000000
    );
    PERFORM {schema}.lock_limits_1(ARRAY(
        SELECT k.limit_name FROM {schema}.limit_rule k WHERE k.job_name = ANY (concerned)
        UNION
        SELECT unnest(held_limits)
    ));
    -- While this transaction waited for the limits, others may have read a later time and used them.
    latest := p_now + GREATEST(0, {schema}.get_read_time_1(NULL) - began) + 1000000;
    IF EXISTS (
        SELECT FROM {schema}.limit_rule k WHERE k.job_name = ANY (concerned) AND (k.interval IS NOT NULL OR NOT k.closes_lane)
            AND k.used_at NOT BETWEEN p_now - 1000000 AND latest
    ) THEN
        PERFORM {schema}.follow_clock_1(p_now, latest, concerned);
    END IF;
    RETURN concerned;
END $$;

-- name: lock_limits
-- Lock limits, with all their keys.
-- Inputs: the names of the limits
-- Locks: the rules of the limits, by limit and job name
CREATE OR REPLACE FUNCTION {schema}.lock_limits_1(p_limits text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM {schema}.limit_rule WHERE limit_name = ANY (p_limits) ORDER BY limit_name, job_name FOR NO KEY UPDATE;
END $$;

-- name: follow_clock
-- Let the rates of limits follow the clock if it was set back (`follow_clock` in core/rate_limits.py), and store the time. A
-- smaller difference than CLOCK_TOLERANCE is none.
-- Inputs: the time; the latest time that another exchange can have read if the clock was not set back; the job names, whose
--   limits are locked
-- Locks: rows of keys, if the clock was set back
CREATE OR REPLACE FUNCTION {schema}.follow_clock_1(p_now int8, p_latest int8, p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    limits text[] := ARRAY(SELECT DISTINCT k.limit_name FROM {schema}.limit_rule k WHERE k.job_name = ANY (p_names));
    early record;
BEGIN
    FOR early IN
        SELECT k.limit_name, max(k.used_at) AS used_at, coalesce(max(GREATEST(k.burst, k.cost) * k.interval), 0) AS full_burst
        FROM {schema}.limit_rule k WHERE k.limit_name = ANY (limits)
        GROUP BY k.limit_name HAVING max(k.used_at) > p_latest
    LOOP
        UPDATE {schema}.limit_use u SET opens_at = CASE WHEN u.opens_at > p_now THEN p_now ELSE u.opens_at END,
            spent_until = LEAST(u.spent_until, p_now + GREATEST(early.full_burst, u.spent_until - early.used_at))
        WHERE u.limit_name = early.limit_name AND (u.spent_until > p_now OR u.opens_at > p_now);
    END LOOP;
    UPDATE {schema}.limit_rule k SET used_at = p_now
    WHERE k.limit_name = ANY (limits) AND (k.interval IS NOT NULL OR NOT k.closes_lane) AND k.used_at NOT BETWEEN p_now - 1000000 AND p_latest;
END $$;

-- name: lock_all_limits
-- Lock all limits before leases end, and prevent new ones in the meantime.
-- Locks: the tables `limit_rule` and `paused_queue` in ROW SHARE; limits in their order; share classes
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION {schema}.lock_all_limits_1() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.limit_rule, {schema}.paused_queue IN ROW SHARE MODE;
    PERFORM FROM {schema}.limit_rule ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    PERFORM FROM {schema}.share_class f ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    PERFORM {schema}.admit_turns_1(NULL);
END $$;

-- name: count_room
-- Count the jobs that a rate allows to start now.
-- Inputs: the time; interval, burst and cost as in `limit_rule`; until when units are spent
-- Result: the number of jobs; NULL: there is no rate
-- Atomic: reads nothing. It is a single expression, which the planner puts in place of the call.
CREATE OR REPLACE FUNCTION {schema}.count_room_1(
    p_now int8, p_interval int8, p_burst int8, p_cost int8, p_spent_until int8
) RETURNS int4
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (p_burst - LEAST(p_cost, p_burst)) * p_interval < GREATEST(0, p_spent_until - p_now) THEN 0
        ELSE CAST(((p_burst - LEAST(p_cost, p_burst)) * p_interval - GREATEST(0, p_spent_until - p_now))
            / (p_cost * p_interval) + 1 AS int4) END
$$;

-- name: list_lane_limits
-- List the limits that close a lane, with their uses.
-- Inputs: queue and name of the lane
-- Result: one row for each limit, with columns of `limit_rule` and `limit_use`; `unit_time` is its interval
CREATE OR REPLACE FUNCTION {schema}.list_lane_limits_1(p_queue text, p_name text) RETURNS TABLE (
    limit_name text, concurrency int4, rate text, unit_time int8, burst int8, cost int8, number int8, in_use int4, spent_until int8
)
LANGUAGE sql STABLE AS $$
    SELECT r.limit_name, r.concurrency, r.rate, r.interval, r.burst, r.cost, u.number, u.in_use, u.spent_until
    FROM {schema}.limit_rule r JOIN {schema}.limit_use u ON u.key = '' AND u.limit_name = r.limit_name
    WHERE r.job_name = p_name AND r.limit_name = ANY (ARRAY['job:' || p_name, 'queue:' || p_queue])
$$;

-- name: read_lane_limits
-- Read the limits that close a lane.
-- Inputs: the time; queue and name of the lane
-- Result:
--   room            the number of jobs that they allow to start now; NULL: any number
--   numbers, units  in the order of the numbers: that of each limit in `limit_use`, and how far a job moves `spent_until`. NULL:
--                   there is no limit
-- Atomic: one read; the caller has locked the limits. A function in SQL would be planned again in each exchange.
CREATE OR REPLACE FUNCTION {schema}.read_lane_limits_1(
    p_now int8, p_queue text, p_name text, OUT room int4, OUT numbers int8[], OUT units int8[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT min(l.room), array_agg(l.number), array_agg(l.units) INTO room, numbers, units FROM (
        SELECT l.number, coalesce(l.cost * l.unit_time, 0) AS units,
            LEAST(l.concurrency - l.in_use, {schema}.count_room_1(p_now, l.unit_time, l.burst, l.cost, l.spent_until)) AS room
        FROM {schema}.list_lane_limits_1(p_queue, p_name) l ORDER BY l.number OFFSET 0
    ) l;
END $$;

-- name: take_uses
-- Count jobs that are leased for keys.
-- Inputs: the time; the numbers of the keys in ascending order; how many jobs count for each, and how far they move `spent_until`
-- Locks: limits that the caller has locked already
-- An UPDATE that reads its values from arrays takes half as long as one that joins. `width_bucket` finds the place of a number.
CREATE OR REPLACE FUNCTION {schema}.take_uses_1(p_now int8, p_numbers int8[], p_jobs int4[], p_units int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.limit_use u SET in_use = u.in_use + p_jobs[width_bucket(u.number, p_numbers)],
        spent_until = CASE WHEN p_units[width_bucket(u.number, p_numbers)] = 0 THEN u.spent_until
            ELSE GREATEST(u.spent_until, p_now) + p_units[width_bucket(u.number, p_numbers)] END
    WHERE u.number = ANY (p_numbers);
END $$;

-- name: take_lane_uses
-- Count jobs that are leased from one lane in the limits that close it.
-- Inputs: the time; the limits as from `read_lane_limits_1`; the number of jobs
CREATE OR REPLACE FUNCTION {schema}.take_lane_uses_1(p_now int8, p_numbers int8[], p_units int8[], p_jobs int4) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_numbers IS NOT NULL AND p_jobs > 0 THEN
        PERFORM {schema}.take_uses_1(
            p_now, p_numbers, array_fill(p_jobs, ARRAY[cardinality(p_numbers)]), ARRAY(SELECT u * p_jobs FROM unnest(p_units) u));
    END IF;
END $$;

-- name: find_next_opening
-- Find when the first rate that closes a requested lane with jobs allows one, or parked jobs are considered again.
-- Inputs: the time; queues and names of the requested lanes
-- Result: the time; NULL: no limit delays a job until a time that is known
-- It reads in three statements. A change in between is found by the next exchange.
CREATE OR REPLACE FUNCTION {schema}.find_next_opening_1(p_now int8, p_queues text[], p_names text[]) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.changed_limit) OR EXISTS (SELECT FROM {schema}.changed_key) THEN
        RETURN p_now;
    END IF;
    RETURN LEAST((
        SELECT u.opens_at FROM {schema}.limit_use u WHERE u.opens_at >= p_now AND EXISTS (
            SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
        ) ORDER BY u.opens_at LIMIT 1
    ), (
        SELECT min(w.opens_at) FROM (  -- OFFSET 0 looks for jobs only where a rate delays them
            SELECT w.queue, w.name, l.spent_until - (l.burst - LEAST(l.cost, l.burst)) * l.unit_time AS opens_at
            FROM unnest(p_queues, p_names) AS w (queue, name)
            CROSS JOIN LATERAL {schema}.list_lane_limits_1(w.queue, w.name) l
            WHERE {schema}.count_room_1(p_now, l.unit_time, l.burst, l.cost, l.spent_until) = 0 OFFSET 0
        ) w
        WHERE NOT {schema}.is_paused_1(p_now, w.queue)
            AND (EXISTS (
                SELECT FROM {schema}.lane a WHERE a.queue = w.queue AND a.name = w.name AND a.tenant = ''
                    AND EXISTS (SELECT FROM {schema}.ready z WHERE z.lane = a.id OFFSET 0) OFFSET 0
            ) OR EXISTS (SELECT FROM {schema}.tenant_turn t WHERE t.queue = w.queue AND t.name = w.name OFFSET 0))
    ));
END $$;

-- name: declare_limits
-- Store what a session declares for its names, and let it apply.
-- Inputs: the time; the names; a JSON object: name -> limit -> [concurrency, rate, interval, burst, cost]
-- Result: whether limits in force changed
-- Locks: `limit_change` in SHARE ROW EXCLUSIVE; then as `apply_limits_1`
CREATE OR REPLACE FUNCTION {schema}.declare_limits_1(p_now int8, p_names text[], p_limits jsonb) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    RETURN {schema}.apply_limits_1(p_now, p_names, p_limits);
END $$;

-- name: combine_limits
-- Combine what is declared for job names with the changes of whole limits. A changed rate keeps the declared cost. A change of the
-- limit of a job name or of a queue makes the limit if it is not declared; that of a queue concerns each name.
-- Inputs: the job names; what is declared, as for `declare_limits_1`; NULL: as it is stored
-- Result: rows as in `limit_rule`
CREATE OR REPLACE FUNCTION {schema}.combine_limits_1(p_names text[], p_limits jsonb) RETURNS SETOF {schema}.limit_rule
LANGUAGE sql STABLE AS $$
    WITH declared AS (
        SELECT l.key AS limit_name, n.name AS job_name, l.value AS parts
        FROM unnest(p_names) n (name), jsonb_each(p_limits -> n.name) l
        UNION ALL
        SELECT r.limit_name, r.job_name, r.declared FROM {schema}.limit_rule r
        WHERE p_limits IS NULL AND r.job_name = ANY (p_names) AND r.declared IS NOT NULL
    ), known AS (
        SELECT * FROM declared
        UNION ALL
        SELECT c.name, n.name, NULL FROM {schema}.limit_change c, unnest(p_names) n (name)
        WHERE NOT c.for_key AND (c.name = 'job:' || n.name OR starts_with(c.name, 'queue:'))
            AND NOT EXISTS (SELECT FROM declared d WHERE d.limit_name = c.name AND d.job_name = n.name)
    )
    SELECT k.limit_name, k.job_name, k.parts, coalesce(c.concurrency, CAST(k.parts ->> 0 AS int4)), coalesce(c.rate, k.parts ->> 1),
        coalesce(c.interval, CAST(k.parts ->> 2 AS int8)), coalesce(c.burst, CAST(k.parts ->> 3 AS int8)),
        coalesce(CAST(k.parts ->> 4 AS int8), 1),
        starts_with(k.limit_name, 'job:') OR starts_with(k.limit_name, 'queue:'), CAST(0 AS int8)
    FROM known k LEFT JOIN {schema}.limit_change c ON c.name = k.limit_name AND NOT c.for_key
$$;

-- name: apply_limits
-- Let what is declared for job names apply, with the changes. If limits of a name change for which jobs are parked, exchanges
-- consider these again (`unpark_changed_1`).
-- Inputs: the time; the job names; what is declared, as for `combine_limits_1`
-- Result: whether limits in force changed
-- Locks: if they change, the table `limit_rule` in EXCLUSIVE. Exchanges hold it in ROW SHARE, so no job is leased meanwhile.
CREATE OR REPLACE FUNCTION {schema}.apply_limits_1(p_now int8, p_names text[], p_limits jsonb) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    changed record;
    any_changed bool := false;
    considered text[] := '{}';  -- the job names whose parked jobs are considered again
BEGIN
    FOR changed IN
        SELECT CAST(ROW(before.*) AS {schema}.limit_rule) AS before, CAST(ROW(after.*) AS {schema}.limit_rule) AS after,
            (before.limit_name, before.concurrency, before.rate, before.interval, before.burst, before.cost)
            IS DISTINCT FROM (after.limit_name, after.concurrency, after.rate, after.interval, after.burst, after.cost) AS is_other
        FROM {schema}.combine_limits_1(p_names, p_limits) after
        FULL JOIN (SELECT * FROM {schema}.limit_rule r WHERE r.job_name = ANY (p_names)) before
            ON before.limit_name = after.limit_name AND before.job_name = after.job_name
        ORDER BY is_other DESC  -- the lock of the table comes before those of rows
    LOOP
        IF changed.is_other AND NOT any_changed THEN
            LOCK TABLE {schema}.limit_rule IN EXCLUSIVE MODE;
            any_changed := true;
        END IF;
        IF changed.is_other THEN
            PERFORM {schema}.replace_rule_1(p_now, changed.before, changed.after);
            IF NOT coalesce((changed.before).closes_lane, (changed.after).closes_lane) THEN
                considered := considered || coalesce((changed.before).job_name, (changed.after).job_name);
            END IF;
        ELSIF (changed.before).declared IS DISTINCT FROM (changed.after).declared THEN
            UPDATE {schema}.limit_rule r SET declared = (changed.after).declared
            WHERE r.limit_name = (changed.before).limit_name AND r.job_name = (changed.before).job_name;
        END IF;
    END LOOP;
    -- Of each key as many jobs return as can start at once: further ones would be parked again (`count_at_once` in
    -- core/limits.py). All return if the limit goes.
    INSERT INTO {schema}.changed_key AS c (limit_name, key, queue, name, number)
    SELECT DISTINCT p.limit_name, p.key, p.queue, p.name, GREATEST(1, LEAST(r.concurrency, r.burst))
    FROM {schema}.limit_rule r JOIN {schema}.parked p ON p.limit_name = r.limit_name AND p.name = r.job_name
    WHERE r.job_name = ANY (considered)
    ON CONFLICT (limit_name, key, queue, name) DO UPDATE SET number = excluded.number;
    IF any_changed AND EXISTS (SELECT FROM {schema}.limit_rule) THEN
        PERFORM {schema}.note_feature_1('limits');
    END IF;
    RETURN any_changed;
END $$;

-- name: replace_rule
-- Replace a rule, and let the uses of its limit follow the new one.
-- Inputs: the time; the rule before, and the new one; in each NULL: there is none
-- Locks: the caller has locked the table `limit_rule`
CREATE OR REPLACE FUNCTION {schema}.replace_rule_1(p_now int8, p_old {schema}.limit_rule, p_new {schema}.limit_rule) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    is_added bool := p_old.limit_name IS NULL;
    is_deleted bool := p_new.limit_name IS NULL;
    rule {schema}.limit_rule := CASE WHEN is_deleted THEN p_old ELSE p_new END;
BEGIN
    IF is_deleted THEN
        DELETE FROM {schema}.limit_rule r WHERE r.limit_name = p_old.limit_name AND r.job_name = p_old.job_name;
    ELSE
        INSERT INTO {schema}.limit_rule SELECT p_new.*
        ON CONFLICT (limit_name, job_name) DO UPDATE SET declared = excluded.declared, concurrency = excluded.concurrency,
            rate = excluded.rate, interval = excluded.interval, burst = excluded.burst, cost = excluded.cost;
    END IF;
    IF rule.closes_lane AND (is_added OR is_deleted) THEN
        PERFORM {schema}.count_running_jobs_1(rule.job_name, rule.limit_name, is_added);
    END IF;
    IF is_deleted AND NOT rule.closes_lane THEN
        INSERT INTO {schema}.changed_limit AS c (job_name, limit_name) VALUES (rule.job_name, rule.limit_name)
        ON CONFLICT (job_name, limit_name) DO UPDATE
        SET key = excluded.key, queue = excluded.queue, name = excluded.name, rank = excluded.rank, due = excluded.due,
            seq = excluded.seq;
    END IF;
    IF starts_with(rule.limit_name, 'job:') AND p_new.interval IS NULL THEN
        UPDATE {schema}.limit_use u SET spent_until = 0 WHERE u.limit_name = rule.limit_name;
    ELSIF (p_old.interval, p_old.burst) <> (p_new.interval, p_new.burst) THEN
        UPDATE {schema}.limit_use u SET spent_until = {schema}.carry_over_1(
            p_now, u.spent_until, p_old.interval, p_old.burst, p_new.interval, p_new.burst)
        WHERE u.limit_name = rule.limit_name AND u.spent_until > p_now AND NOT EXISTS (
            SELECT FROM {schema}.limit_change c
            WHERE c.name = u.limit_name AND c.for_key AND c.key = u.key AND c.interval IS NOT NULL
        );
    END IF;
END $$;

-- name: carry_over
-- Return until when units are spent after a rate replaced another (`RateLimit.carry_over` in core/rate_limits.py).
-- Inputs: the time; until when they were spent; interval and burst of the old rate and of the new one
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION {schema}.carry_over_1(
    p_now int8, p_spent_until int8, p_old_interval int8, p_old_burst int8, p_interval int8, p_burst int8
) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_interval IS NULL OR p_spent_until <= p_now + p_old_burst * p_old_interval IS NOT TRUE
        THEN p_spent_until ELSE LEAST(p_spent_until, p_now + p_burst * p_interval) END
$$;

-- name: change_limit
-- Change a limit or one of its keys until it is reset. What an earlier change set stays, unless this one sets it too.
-- Inputs: the time or NULL; the name of the limit; whether the change is for one key, and that key; the maximum (NULL: not
--   changed); rate, interval and burst (NULL: not changed); who changed it and why
-- Locks: `limit_change` in SHARE ROW EXCLUSIVE; then as `apply_limits_1`, or the rows of the limit by key
-- Atomic: one transaction, so the next exchange follows the change
CREATE OR REPLACE FUNCTION {schema}.change_limit_1(
    p_now int8, p_name text, p_for_key bool, p_key text, p_concurrency int4, p_rate text, p_interval int8, p_burst int8,
    p_by text, p_reason text
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    before {schema}.limit_change;
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key = p_for_key AND c.key = p_key;
    INSERT INTO {schema}.limit_change AS c (name, for_key, key, concurrency, rate, interval, burst, changed_at, changed_by, reason)
    VALUES (p_name, p_for_key, p_key, p_concurrency, p_rate, p_interval, p_burst, now, p_by, p_reason)
    ON CONFLICT (name, for_key, key) DO UPDATE SET concurrency = coalesce(excluded.concurrency, c.concurrency),
        rate = coalesce(excluded.rate, c.rate), interval = coalesce(excluded.interval, c.interval),
        burst = coalesce(excluded.burst, c.burst), changed_at = excluded.changed_at, changed_by = excluded.changed_by,
        reason = excluded.reason;
    PERFORM {schema}.follow_change_1(now, p_name, p_for_key, p_key, before);
END $$;

-- name: reset_limit
-- Let what is declared apply again.
-- Inputs: the time or NULL; the name of the limit; whether the change was for one key, and that key
-- Result: whether there was a change
-- Locks: as `change_limit_1`
CREATE OR REPLACE FUNCTION {schema}.reset_limit_1(p_now int8, p_name text, p_for_key bool, p_key text) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    before {schema}.limit_change;
BEGIN
    LOCK TABLE {schema}.limit_change IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key = p_for_key AND c.key = p_key
    RETURNING * INTO before;
    IF before.name IS NOT NULL THEN
        PERFORM {schema}.follow_change_1(now, p_name, p_for_key, p_key, before);
    END IF;
    RETURN before.name IS NOT NULL;
END $$;

-- name: follow_change
-- Apply a limit that was changed, or consider the jobs again that are parked for a key that was changed.
-- Inputs: the time; the name of the limit; whether the change was for one key, and that key; the change before
CREATE OR REPLACE FUNCTION {schema}.follow_change_1(
    p_now int8, p_name text, p_for_key bool, p_key text, p_before {schema}.limit_change
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    after {schema}.limit_change;
    most int4 := 1;
    rule record;
BEGIN
    IF NOT p_for_key THEN
        PERFORM {schema}.apply_limits_1(p_now, {schema}.list_names_of_limit_1(p_name), NULL);
        RETURN;
    END IF;
    PERFORM {schema}.lock_limits_1(ARRAY[p_name]);
    SELECT * INTO after FROM {schema}.limit_change c WHERE c.name = p_name AND c.for_key AND c.key = p_key;
    FOR rule IN SELECT * FROM {schema}.limit_rule k WHERE k.limit_name = p_name ORDER BY k.job_name LOOP
        UPDATE {schema}.limit_use u SET spent_until = {schema}.carry_over_1(p_now, u.spent_until,
            coalesce(p_before.interval, rule.interval), coalesce(p_before.burst, rule.burst),
            coalesce(after.interval, rule.interval), coalesce(after.burst, rule.burst))
        WHERE u.limit_name = p_name AND u.key = p_key;
        most := GREATEST(most, after.concurrency, CASE WHEN after.concurrency IS NULL THEN rule.concurrency END);
    END LOOP;
    INSERT INTO {schema}.changed_key AS c (limit_name, key, queue, name, number)
    SELECT DISTINCT p_name, p_key, p.queue, p.name, most FROM {schema}.parked p WHERE p.limit_name = p_name AND p.key = p_key
    ON CONFLICT (limit_name, key, queue, name) DO UPDATE SET number = excluded.number;
    PERFORM {schema}.unpark_changed_1(p_now);
END $$;

-- name: list_names_of_limit
-- List the job names that a change of a whole limit concerns.
-- Inputs: the name of the limit
CREATE OR REPLACE FUNCTION {schema}.list_names_of_limit_1(p_limit text) RETURNS text[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF starts_with(p_limit, 'job:') THEN
        RETURN ARRAY[substr(p_limit, 5)];
    ELSIF starts_with(p_limit, 'queue:') THEN
        RETURN ARRAY(
            SELECT r.job_name FROM {schema}.limit_rule r
            UNION
            SELECT unnest(d.names) FROM {schema}.session_description d JOIN {schema}.session s ON s.number = d.session
            WHERE s.ended_at IS NULL
        );
    END IF;
    RETURN ARRAY(SELECT r.job_name FROM {schema}.limit_rule r WHERE r.limit_name = p_limit);
END $$;

-- name: count_running_jobs
-- Count the running jobs of a name in a limit that closes lanes, or count them no more.
-- Inputs: the job name; the name of the limit; whether the jobs count
-- Locks: leases. The caller has locked the table `limit_rule`, so no exchange leases jobs.
CREATE OR REPLACE FUNCTION {schema}.count_running_jobs_1(p_job text, p_limit text, p_counts bool) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    key_number int8 := {schema}.get_or_create_key_1(p_limit, '');
    jobs int4;
BEGIN
    UPDATE {schema}.lease l SET key_numbers = CASE WHEN p_counts THEN l.key_numbers || key_number
        ELSE nullif(array_remove(l.key_numbers, key_number), '{}') END
    FROM {schema}.lane a
    WHERE a.id = l.lane AND a.name = p_job AND p_limit IN ('job:' || a.name, 'queue:' || a.queue)
        AND coalesce(key_number = ANY (l.key_numbers), false) <> p_counts;
    GET DIAGNOSTICS jobs = ROW_COUNT;
    UPDATE {schema}.limit_use u SET in_use = u.in_use + CASE WHEN p_counts THEN jobs ELSE -jobs END WHERE u.number = key_number;
END $$;

-- name: get_or_create_key
-- Return the number of a key of a limit. A key that has none gets one.
-- Inputs: the limit and its key
-- Result: the number
-- Locks: the caller has locked the limit
CREATE OR REPLACE FUNCTION {schema}.get_or_create_key_1(p_limit text, p_key text) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    found_number int8;
BEGIN
    LOOP
        SELECT u.number INTO found_number FROM {schema}.limit_use u WHERE u.key = p_key AND u.limit_name = p_limit;
        EXIT WHEN FOUND;
        INSERT INTO {schema}.limit_use (limit_name, key, in_use, spent_until) VALUES (p_limit, p_key, 0, 0)
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN found_number;
END $$;

-- name: list_job_keys
-- List the keys of a job for which its name has limits, by the name of the limit. For a limit that closes lanes each job has the
-- key '', and the cost of the limit.
-- Inputs: the job name; the seq
-- Result: the key and its limit; `unit_time` is its interval (NULL: it has no rate); `cost` is that of the job, `declared_cost` that
--   of the limit
CREATE OR REPLACE FUNCTION {schema}.list_job_keys_1(p_name text, p_seq int8) RETURNS TABLE (
    limit_name text, key text, concurrency int4, unit_time int8, burst int8, cost int8, declared_cost int8, closes_lane bool
)
LANGUAGE sql STABLE AS $$
    SELECT k.limit_name, k.key, coalesce(c.concurrency, k.concurrency), coalesce(c.interval, k.interval),
        coalesce(c.burst, k.burst), coalesce(k.own_cost, k.cost), k.cost, k.closes_lane
    FROM (  -- OFFSET 0 keeps the options from being read again for each column
        SELECT k.*, CASE WHEN NOT k.closes_lane THEN o.keys ->> k.limit_name
                WHEN k.limit_name IN ('job:' || p_name, 'queue:' || o.queue) THEN '' END AS key,
            CASE WHEN NOT k.closes_lane THEN CAST(o.cost AS int8) END AS own_cost
        FROM (
            SELECT read.options -> 'limit_keys' AS keys, read.options ->> 'cost' AS cost, read.queue
            FROM (
                SELECT CAST({schema}.replace_nul_1(j.options) AS jsonb) AS options, a.queue
                FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane WHERE j.seq = p_seq OFFSET 0
            ) read
            OFFSET 0
        ) o, {schema}.limit_rule k
        WHERE k.job_name = p_name
        OFFSET 0
    ) k
    LEFT JOIN {schema}.limit_change c ON NOT k.closes_lane AND c.name = k.limit_name AND c.for_key AND c.key = k.key
    WHERE k.key IS NOT NULL
    ORDER BY k.limit_name
$$;

-- name: find_keyed_lanes
-- Find the lanes whose jobs may be parked.
-- Inputs: queues and names of the requested lanes
-- Result: one value for each lane, in their order
CREATE OR REPLACE FUNCTION {schema}.find_keyed_lanes_1(p_queues text[], p_names text[]) RETURNS bool[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT EXISTS (SELECT FROM {schema}.limit_rule k WHERE k.job_name = r.name AND NOT k.closes_lane)
        FROM unnest(p_queues, p_names) WITH ORDINALITY AS r (queue, name, place) ORDER BY r.place
    );
END $$;

-- name: unpark
-- Return the first jobs of a queue and name that are parked for a key to `ready`, whether their other keys have room or not.
-- Inputs: the time; limit, key, queue and name; the maximum number of jobs
-- Result: the number of jobs
-- Locks: the rows of `parked`; rows that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.unpark_1(
    p_now int8, p_limit text, p_key text, p_queue text, p_name text, p_most int4
) RETURNS int4
LANGUAGE plpgsql AS $$
BEGIN
    RETURN {schema}.unpark_seqs_1(p_now, ARRAY(
        SELECT p.seq FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
        ORDER BY p.rank, p.due, p.seq LIMIT p_most FOR UPDATE SKIP LOCKED
    ));
END $$;

-- name: consider_key_later
-- Let exchanges consider a key again a second later, if jobs of a queue and name are parked for it. Call it after another
-- transaction had locked these jobs: one of a caller may hold them for long.
-- Inputs: the time; limit, key, queue and name. The caller has locked the limit.
CREATE OR REPLACE FUNCTION {schema}.consider_key_later_1(
    p_now int8, p_limit text, p_key text, p_queue text, p_name text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.limit_use u SET opens_at = LEAST(u.opens_at, p_now + 1000000)
    WHERE u.limit_name = p_limit AND u.key = p_key AND EXISTS (
        SELECT FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND p.queue = p_queue AND p.name = p_name
    );
END $$;

-- name: unpark_key
-- Return the first jobs of each queue and name that are parked for a key to `ready`.
-- Inputs: the time; limit and key; the maximum number of jobs of each queue and name. The caller has locked the limit.
-- Result: the queues to notify
CREATE OR REPLACE FUNCTION {schema}.unpark_key_1(p_now int8, p_limit text, p_key text, p_most int4) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    last_queue text COLLATE "C" := '';
    last_name text COLLATE "C" := '';
    returned int4;
    to_notify text[] := '{}';
BEGIN
    LOOP  -- read the first job of each queue and name, not all of them
        SELECT p.queue, p.name INTO last_queue, last_name FROM {schema}.parked p
        WHERE p.limit_name = p_limit AND p.key = p_key AND (p.queue, p.name) > (last_queue, last_name)
        ORDER BY p.queue, p.name LIMIT 1;
        EXIT WHEN NOT FOUND;
        returned := {schema}.unpark_1(p_now, p_limit, p_key, last_queue, last_name, p_most);
        IF returned > 0 THEN
            to_notify := to_notify || last_queue;
        END IF;
        IF returned < p_most THEN
            PERFORM {schema}.consider_key_later_1(p_now, p_limit, p_key, last_queue, last_name);
        END IF;
    END LOOP;
    RETURN to_notify;
END $$;

-- name: unpark_open
-- Return jobs of these names whose rate allows one now to `ready`. A key that has no rate is here because a caller's transaction
-- held its jobs: as many return as the key has places for.
-- Inputs: the time; the job names, whose limits are locked
CREATE OR REPLACE FUNCTION {schema}.unpark_open_1(p_now int8, p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    opened record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.limit_use u WHERE u.opens_at <= p_now) THEN
        RETURN;
    END IF;
    FOR opened IN
        UPDATE {schema}.limit_use o SET opens_at = NULL WHERE o.ctid = ANY (ARRAY(
            SELECT u.ctid FROM (
                SELECT u.ctid, u.limit_name FROM {schema}.limit_use u WHERE u.opens_at <= p_now ORDER BY u.opens_at OFFSET 0
            ) u WHERE EXISTS (
                SELECT FROM {schema}.limit_rule k WHERE k.limit_name = u.limit_name AND k.job_name = ANY (p_names)
            )
        )) RETURNING o.limit_name, o.key, GREATEST(1, (
            SELECT max(coalesce(c.concurrency, k.concurrency)) - o.in_use
            FROM {schema}.limit_rule k
            LEFT JOIN {schema}.limit_change c ON c.name = k.limit_name AND c.for_key AND c.key = o.key
            WHERE k.limit_name = o.limit_name AND coalesce(c.interval, k.interval) IS NULL
        )) AS most
    LOOP
        PERFORM {schema}.unpark_key_1(p_now, opened.limit_name, opened.key, opened.most);
    END LOOP;
END $$;

-- name: unpark_changed
-- Return parked jobs to `ready` after limits changed, up to MAX_RETURNED in core/limits.py.
-- Inputs: the time
-- Result: the queues to notify
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_1(p_now int8) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    rest int4 := 1000;
    returned record;
    to_notify text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM {schema}.changed_key) THEN
        SELECT * INTO returned FROM {schema}.unpark_changed_keys_1(p_now, rest);
        rest := rest - returned.moved;
        to_notify := returned.to_notify;
    END IF;
    IF rest > 0 THEN
        to_notify := to_notify || {schema}.unpark_changed_limits_1(p_now, rest);
    END IF;
    RETURN to_notify;
END $$;

-- name: unpark_changed_keys
-- Return parked jobs of keys whose maximum changed to `ready`, in their order.
-- Inputs: the time; the maximum number of jobs
-- Result: the number of jobs; the queues to notify
-- Locks: the rows of the changed keys, except those that another transaction has locked; then rows of `parked`. If one of
--   these is locked, the next call tries again.
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_keys_1(p_now int8, p_most int4, OUT moved int4, OUT to_notify text[])
LANGUAGE plpgsql AS $$
DECLARE
    changed {schema}.changed_key;
    seqs int8[];
    moved_here int4;
BEGIN
    moved := 0;
    to_notify := '{}';
    FOR changed IN SELECT * FROM {schema}.changed_key c ORDER BY c.limit_name, c.key, c.queue, c.name FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN moved >= p_most;
        seqs := ARRAY(
            SELECT p.seq FROM {schema}.parked p
            WHERE p.limit_name = changed.limit_name AND p.key = changed.key AND p.queue = changed.queue AND p.name = changed.name
            ORDER BY p.rank, p.due, p.seq LIMIT LEAST(changed.number, p_most - moved)
        );
        moved_here := {schema}.unpark_seqs_1(p_now, seqs);
        IF moved_here > 0 THEN
            to_notify := to_notify || changed.queue;
        END IF;
        moved := moved + moved_here;
        IF moved_here < changed.number AND (moved >= p_most OR moved_here < cardinality(seqs)) THEN
            UPDATE {schema}.changed_key c SET number = c.number - moved_here
            WHERE c.limit_name = changed.limit_name AND c.key = changed.key AND c.queue = changed.queue AND c.name = changed.name;
        ELSE
            DELETE FROM {schema}.changed_key c
            WHERE c.limit_name = changed.limit_name AND c.key = changed.key AND c.queue = changed.queue AND c.name = changed.name;
        END IF;
    END LOOP;
END $$;

-- name: find_changing
-- Find the requested lanes to which parked jobs still return.
-- Inputs: queues and names of the requested lanes
-- Result: one value for each lane, in their order; NULL: no jobs return to any of them
CREATE OR REPLACE FUNCTION {schema}.find_changing_1(p_queues text[], p_names text[]) RETURNS bool[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    changing bool[] := ARRAY(
        SELECT EXISTS (SELECT FROM {schema}.changed_limit c WHERE c.job_name = r.name)
            OR EXISTS (SELECT FROM {schema}.changed_key c WHERE c.queue = r.queue AND c.name = r.name)
        FROM unnest(p_queues, p_names) WITH ORDINALITY AS r (queue, name, place) ORDER BY r.place
    );
BEGIN
    RETURN CASE WHEN true = ANY (changing) THEN changing END;
END $$;

-- name: unpark_changed_limits
-- Return parked jobs of names whose limits changed to `ready`. The jobs of a key return in their order, so the first of
-- them are never passed over.
-- Inputs: the time; the maximum number of jobs
-- Result: the queues to notify
-- Locks: the row of the changed limit, if no other transaction has locked it; then rows of `parked`. If one of these is
--   locked, the next call tries again.
CREATE OR REPLACE FUNCTION {schema}.unpark_changed_limits_1(p_now int8, p_most int4) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    rest int4 := p_most;
    changed {schema}.changed_limit;
    place {schema}.parked;
    seqs int8[];
    queues text[];
    moved int4;
    found_count int4;
    to_notify text[] := '{}';
BEGIN
    LOOP
        SELECT * INTO changed FROM {schema}.changed_limit c ORDER BY c.job_name, c.limit_name LIMIT 1
        FOR UPDATE SKIP LOCKED;
        EXIT WHEN NOT FOUND;
        seqs := '{}';
        queues := '{}';
        found_count := 0;
        FOR place IN
            SELECT * FROM {schema}.parked p WHERE p.limit_name = changed.limit_name
                AND (p.key, p.queue, p.name, p.rank, p.due, p.seq)
                    > (changed.key, changed.queue, changed.name, changed.rank, changed.due, changed.seq)
            ORDER BY p.key, p.queue, p.name, p.rank, p.due, p.seq LIMIT rest
        LOOP
            found_count := found_count + 1;
            IF place.name = changed.job_name THEN
                seqs := seqs || place.seq;
                IF place.queue <> ALL (queues) THEN
                    queues := queues || place.queue;
                END IF;
            END IF;
        END LOOP;
        moved := {schema}.unpark_seqs_1(p_now, seqs);
        to_notify := to_notify || queues;
        EXIT WHEN moved < cardinality(seqs);
        IF found_count < rest THEN
            DELETE FROM {schema}.changed_limit c WHERE c.job_name = changed.job_name AND c.limit_name = changed.limit_name;
        ELSE
            UPDATE {schema}.changed_limit c SET key = place.key, queue = place.queue, name = place.name,
                rank = place.rank, due = place.due, seq = place.seq
            WHERE c.job_name = changed.job_name AND c.limit_name = changed.limit_name;
        END IF;
        rest := rest - found_count;
        EXIT WHEN rest <= 0;
    END LOOP;
    RETURN to_notify;
END $$;

-- name: unpark_seqs
-- Return parked jobs to `ready`.
-- Inputs: the time; seqs
-- Result: the number of jobs
-- Locks: the rows of `parked`; rows that another transaction has locked are skipped
-- Atomic: the rows are deleted last, so that the trigger of `ready` (`add_turn_1`) knows that the jobs were parked
CREATE OR REPLACE FUNCTION {schema}.unpark_seqs_1(p_now int8, p_seqs int8[]) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    place {schema}.parked;
    moved int8[] := '{}';
BEGIN
    FOR place IN SELECT * FROM {schema}.parked p WHERE p.seq = ANY (p_seqs) FOR UPDATE SKIP LOCKED LOOP
        PERFORM {schema}.make_waiting_1(GREATEST(p_now, place.due), place.seq, place.due, place.lane, place.attempt_status);
        moved := moved || place.seq;
    END LOOP;
    DELETE FROM {schema}.parked p WHERE p.seq = ANY (moved);
    RETURN cardinality(moved);
END $$;

-- name: release_keys
-- Stop counting leases that ended for their keys, and let the next parked jobs have their turn.
-- Inputs: the time; the numbers of the keys, one element for each lease and key (NULL: none)
-- Result: the queues to notify: those of parked jobs that return, and those with due jobs in lanes that were closed and have
--   room now
CREATE OR REPLACE FUNCTION {schema}.release_keys_1(p_now int8, p_numbers int8[]) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    numbers int8[];
    jobs int4[];
    opened text[];
    released record;
    to_notify text[] := '{}';
BEGIN
    IF p_numbers IS NULL THEN
        RETURN to_notify;
    END IF;
    SELECT array_agg(freed.number), array_agg(freed.jobs) INTO numbers, jobs FROM (
        SELECT n.number, CAST(count(*) AS int4) AS jobs FROM unnest(p_numbers) n (number) GROUP BY 1 ORDER BY 1
    ) freed;
    UPDATE {schema}.limit_use u SET in_use = u.in_use - jobs[width_bucket(u.number, numbers)] WHERE u.number = ANY (numbers);
    opened := ARRAY(
        SELECT u.limit_name FROM {schema}.limit_use u
        WHERE u.number = ANY (numbers) AND u.key = '' AND EXISTS (
            SELECT FROM {schema}.limit_rule k WHERE k.limit_name = u.limit_name AND k.closes_lane
                AND k.concurrency > u.in_use AND k.concurrency <= u.in_use + jobs[width_bucket(u.number, numbers)]
        )
    );
    IF opened <> '{}' THEN
        to_notify := ARRAY(
            SELECT DISTINCT a.queue FROM {schema}.lane a
            WHERE ARRAY['job:' || a.name, 'queue:' || a.queue] && opened
                AND EXISTS (SELECT FROM {schema}.ready r WHERE r.lane = a.id)
        );
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.parked) THEN
        RETURN to_notify;
    END IF;
    FOR released IN
        SELECT u.limit_name, u.key, jobs[width_bucket(u.number, numbers)] AS jobs FROM {schema}.limit_use u
        WHERE u.number = ANY (numbers)
            AND EXISTS (SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key OFFSET 0)
    LOOP
        to_notify := to_notify || {schema}.unpark_key_1(p_now, released.limit_name, released.key, released.jobs);
    END LOOP;
    RETURN to_notify;
END $$;

-- name: pass_turns
-- Let jobs that are parked for the keys of a job have its turn: the job was cancelled before a worker took it.
-- Inputs: the time; seq and lane of the job
-- Result: whether any job returned to `ready`
CREATE OR REPLACE FUNCTION {schema}.pass_turns_1(p_now int8, p_seq int8, p_lane int4) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    returned bool := false;
    own record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.parked) THEN
        RETURN false;
    END IF;
    FOR own IN
        SELECT k.limit_name, k.key, a.queue, a.name FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k
        WHERE a.id = p_lane AND NOT k.closes_lane
    LOOP
        returned := {schema}.unpark_1(p_now, own.limit_name, own.key, own.queue, own.name, 1) > 0 OR returned;
    END LOOP;
    RETURN returned;
END $$;

-- name: refund_keys
-- Return what a job that has not started took from the rates of its keys. The part that has become available again by itself
-- since then is not returned.
-- Inputs: the time; its lease
CREATE OR REPLACE FUNCTION {schema}.refund_keys_1(p_now int8, p_lease {schema}.lease) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_lease.key_numbers IS NULL THEN
        RETURN;
    END IF;
    UPDATE {schema}.limit_use u SET spent_until = GREATEST(
        u.spent_until - GREATEST(0, k.cost * k.unit_time - GREATEST(0, p_now - p_lease.leased_at)), p_now - 31622400000000)
    FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_lease.seq) k
    WHERE a.id = p_lease.lane AND k.unit_time IS NOT NULL AND u.limit_name = k.limit_name AND u.key = k.key
        AND u.number = ANY (p_lease.key_numbers);
END $$;

-- name: spend_key_units
-- Take units that an attempt spent beyond its cost from the rates of its keys, or give some back.
-- Inputs: the time; lane and seq of the job; the units; negative: give back
-- `spent_until` is at most 366 days ahead or behind, so that nothing overflows.
CREATE OR REPLACE FUNCTION {schema}.spend_key_units_1(p_now int8, p_lane int4, p_seq int8, p_units int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.limit_use u SET spent_until = LEAST(GREATEST(
        CASE WHEN p_units > 0 THEN GREATEST(u.spent_until, p_now) ELSE u.spent_until END + p_units * k.unit_time,
        p_now - 31622400000000), p_now + 31622400000000)
    FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k
    WHERE a.id = p_lane AND k.unit_time IS NOT NULL AND u.limit_name = k.limit_name AND u.key = k.key;
END $$;

-- name: block_keys
-- Let the rates of a job's keys allow no job for some time, and no burst after that. The rate of its name is blocked only if
-- it has no other rate.
-- Inputs: the time; lane and seq of the job; the delay in microseconds
-- Result: whether a key of the job has a rate
CREATE OR REPLACE FUNCTION {schema}.block_keys_1(p_now int8, p_lane int4, p_seq int8, p_delay int8) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.limit_use AS u (limit_name, key, in_use, spent_until)
    SELECT k.limit_name, k.key, 0, LEAST(p_now + 31622400000000,
        p_now + LEAST(p_delay, 31622400000000) + (k.burst - LEAST(k.declared_cost, k.burst)) * k.unit_time)
    FROM (
        SELECT k.*, bool_or(NOT starts_with(k.limit_name, 'job:')) OVER () AS has_others
        FROM {schema}.lane a, {schema}.list_job_keys_1(a.name, p_seq) k WHERE a.id = p_lane AND k.unit_time IS NOT NULL
    ) k
    WHERE NOT (k.has_others AND starts_with(k.limit_name, 'job:'))
    ON CONFLICT (limit_name, key) DO UPDATE SET spent_until = GREATEST(u.spent_until, excluded.spent_until);
    RETURN FOUND;
END $$;

-- name: list_key_uses
-- List the keys of a job, for which it may be parked, that are in use or for which jobs wait.
-- Inputs: job name and seq
-- Result: one row for each key, ordered by limit
CREATE OR REPLACE FUNCTION {schema}.list_key_uses_1(p_name text, p_seq int8) RETURNS TABLE (
    limit_name text, key text, in_use int4, parked int8, opens_at int8
)
LANGUAGE sql STABLE ROWS 10 SET jit TO off AS $$
    SELECT * FROM (
        SELECT k.limit_name, k.key, coalesce(u.in_use, 0) AS in_use, (
            SELECT count(*) FROM {schema}.parked p WHERE p.limit_name = k.limit_name AND p.key = k.key
        ) AS parked, u.opens_at
        FROM {schema}.list_job_keys_1(p_name, p_seq) k
        LEFT JOIN {schema}.limit_use u ON u.limit_name = k.limit_name AND u.key = k.key
        WHERE NOT k.closes_lane
    ) used WHERE used.in_use > 0 OR used.parked > 0 ORDER BY 1
$$;

-- name: list_fullest_keys
-- List the fullest keys of each limit, with the sums of all its keys.
-- Inputs: a limit name (NULL: all); the maximum number of keys of each limit
-- Result: one row for each key, as from `list_key_uses_1`, with the number of keys, the running and the parked jobs of the
--   limit; ordered by limit, first the fullest key
CREATE OR REPLACE FUNCTION {schema}.list_fullest_keys_1(p_name text, p_most int4) RETURNS TABLE (
    limit_name text, key text, in_use int4, parked int8, opens_at int8, keys int8, all_in_use int8, all_parked int8
)
LANGUAGE sql STABLE AS $$
    SELECT r.limit_name, r.key, r.in_use, r.parked, r.opens_at, r.keys, r.all_in_use, r.all_parked FROM (
        SELECT used.*, row_number() OVER (PARTITION BY used.limit_name ORDER BY used.in_use + used.parked DESC, used.key)
            AS place, count(*) OVER named AS keys, sum(used.in_use) OVER named AS all_in_use,
            CAST(sum(used.parked) OVER named AS int8) AS all_parked
        FROM (
            SELECT coalesce(u.limit_name, p.limit_name) AS limit_name, coalesce(u.key, p.key) AS key,
                coalesce(u.in_use, 0) AS in_use, coalesce(p.jobs, 0) AS parked, u.opens_at
            FROM (SELECT * FROM {schema}.limit_use k WHERE p_name IS NULL OR k.limit_name = p_name) u
            FULL JOIN (
                SELECT k.limit_name, k.key, count(*) AS jobs FROM {schema}.parked k
                WHERE p_name IS NULL OR k.limit_name = p_name GROUP BY 1, 2
            ) p ON p.limit_name = u.limit_name AND p.key = u.key
        ) used
        WHERE used.in_use > 0 OR used.parked > 0
        WINDOW named AS (PARTITION BY used.limit_name)
    ) r WHERE r.place <= p_most ORDER BY r.limit_name, r.place
$$;

-- name: prune_limit_uses
-- Delete the keys that are not in use any more.
-- Inputs: the time or NULL
-- Locks: if there are any, all limits: an exchange may be about to count jobs for the number of a key
CREATE OR REPLACE FUNCTION {schema}.prune_limit_uses_1(p_now int8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_read_time_1(p_now);
    unused int8[];
BEGIN
    unused := ARRAY(
        SELECT u.number FROM {schema}.limit_use u WHERE u.in_use = 0 AND u.opens_at IS NULL AND u.spent_until < now
            AND NOT EXISTS (SELECT FROM {schema}.limit_rule r WHERE r.limit_name = u.limit_name AND r.closes_lane)
    );
    IF unused = '{}' THEN
        RETURN;
    END IF;
    PERFORM FROM {schema}.limit_rule ORDER BY limit_name, job_name FOR NO KEY UPDATE;
    DELETE FROM {schema}.limit_use u WHERE u.number = ANY (unused) AND u.in_use = 0 AND u.opens_at IS NULL
        AND u.spent_until < now AND NOT EXISTS (
            SELECT FROM {schema}.parked p WHERE p.limit_name = u.limit_name AND p.key = u.key
        ) AND NOT EXISTS (SELECT FROM {schema}.limit_rule r WHERE r.limit_name = u.limit_name AND r.closes_lane);
END $$;
