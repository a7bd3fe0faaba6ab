-- Flows: what follows from the end of members of flows. backends/planning/flows.py decides the same in Python.
--
-- A function that ends or replays a member adds a row to `flow_change`. `resolve_flows_1` applies these rows, normally in the same
-- call. Rows that it leaves are applied by the next exchange of any worker; at the latest by a rescue.
-- An exchange passes the changes of the jobs that it completes to `resolve_flows_1`, which writes them to the table only if others
-- are left there, and a job waits for the source or a flow has to count one of the others. So the table is empty most of the time, also while many members end.
-- Locks, after all that an exchange takes: the flows that are no groups (roots) by number; then, each with SKIP LOCKED, rows of
-- `dependent`, further roots, source jobs, unique keys, the horizon and finished jobs. So only the locks of roots are waited for, and
-- one call takes all of them before it changes anything. What cannot be locked is left to a later call, with all later changes of
-- the same source: the changes of a source are applied in the order of their numbers.
-- A root is locked while the changes inside its flow are applied. So two workers that end the last members of a flow at the same
-- time apply their changes one after the other, and the second one sees the conditions that the first one has met.
-- A caller's transaction, and one that stays open for a round trip, only adds rows to `flow_change`. It locks flows FOR KEY SHARE, so
-- that they are not deleted; a change of counts does not wait for this lock.

-- name: note_changes
-- Note that jobs have ended or were replayed.
-- Inputs: ids and flows of the jobs (arrays of the same length, as in `job`); the change; how the flows count it
CREATE OR REPLACE FUNCTION {schema}.note_changes_1(p_ids bytea[], p_flows int8[], p_change text, p_outcome text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.put_changes_1({schema}.make_changes_1(p_ids, p_flows, p_change, p_outcome));
END $$;

-- name: make_changes
-- Make the changes of jobs that have ended or were replayed.
-- Inputs: as for `note_changes_1`
CREATE OR REPLACE FUNCTION {schema}.make_changes_1(p_ids bytea[], p_flows int8[], p_change text, p_outcome text)
RETURNS {schema}.flow_change[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT CAST(ROW(NULL, CASE WHEN m.flow > 0 THEN m.flow END, coalesce(f.root, f.number), 'job', m.id, p_change, p_outcome)
            AS {schema}.flow_change)
        FROM unnest(p_ids, p_flows) WITH ORDINALITY AS m (id, flow, place) LEFT JOIN {schema}.flow f ON f.number = abs(m.flow)
        ORDER BY m.place
    );
END $$;

-- name: put_changes
-- Add changes to `flow_change`, in their order.
-- Inputs: the changes. Their numbers are not used.
CREATE OR REPLACE FUNCTION {schema}.put_changes_1(p_changes {schema}.flow_change[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.flow_change (flow, root, source_kind, source, change, outcome)
    SELECT c.flow, c.root, c.source_kind, c.source, c.change, c.outcome
    FROM unnest(p_changes) WITH ORDINALITY AS c (number, flow, root, source_kind, source, change, outcome, place) ORDER BY c.place;
END $$;

-- name: continue_flows
-- Apply the changes of members of flows, if there are any.
-- Inputs: the time or NULL
-- Result: the queue of each job to notify
-- Locks: as `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.continue_flows_1(p_now int8) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    lanes int4[];
BEGIN
    IF EXISTS (SELECT FROM {schema}.flow_change) THEN
        now := {schema}.get_write_time_1(p_now);
        lanes := {schema}.resume_times_1(now);
        SELECT lanes || r.to_notify INTO lanes FROM {schema}.resolve_flows_1(now) r;
    END IF;
    RETURN ARRAY(SELECT a.queue FROM unnest(lanes) l (lane) JOIN {schema}.lane a ON a.id = l.lane);
END $$;

-- name: resolve_flows
-- Apply changes of jobs and the changes in `flow_change`, and what follows from them: count members, and resume, cancel or suspend the
-- jobs that wait.
-- Inputs: the time; changes that are not in the table (NULL: none); the maximum number of conditions to apply (MAX_RESOLVED in
--   core/flows.py). The rest is left to a later call.
-- Result:
--   to_notify   the lane of each job to notify; NULL: none
--   is_cut      whether some is left because of the maximum; false also if some is left because other transactions have locked it
-- Locks: see the header of this file
-- Atomic: part of the caller's transaction. Each statement sees what other transactions have committed before it, so also what
--   those have changed that held the roots before.
CREATE OR REPLACE FUNCTION {schema}.resolve_flows_1(
    p_now int8, p_changes {schema}.flow_change[] DEFAULT NULL, p_limit int4 DEFAULT 250, OUT to_notify int4[], OUT is_cut bool
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    named int8[];
    roots int8[];
    takes_orphans bool := false;
    stays_blocked bool := false;
    left_sources bytea[];
    keeps_order bool;
    put_behind {schema}.flow_change[];
    counted {schema}.flow_change[];  -- of jobs for which no job waits
    taken {schema}.flow_change[];
    changes {schema}.flow_change[] := '{}';
    level {schema}.flow_change[];
    blocked {schema}.flow_change[] := '{}';
    ends {schema}.flow_change[];
    waiters record;
    reopened int8[];
    available int4 := p_limit;
BEGIN
    is_cut := false;
    SELECT array_agg(DISTINCT c.root) INTO named FROM (
        SELECT n.root FROM unnest(p_changes) n UNION ALL (SELECT n.root FROM {schema}.flow_change n ORDER BY n.number LIMIT 2000)
    ) c;
    IF named IS NULL THEN
        RETURN;
    END IF;
    roots := ARRAY(SELECT f.number FROM {schema}.flow f WHERE f.number = ANY (named) ORDER BY f.number FOR NO KEY UPDATE);
    IF cardinality(roots) < cardinality(named) THEN  -- some sources are in no flow, or it was deleted
        takes_orphans := pg_try_advisory_xact_lock(hashtextextended('{schema}.resolve_flows_1', 7046));
    END IF;
    IF (takes_orphans OR cardinality(roots) = cardinality(named)) AND NOT EXISTS (SELECT FROM {schema}.flow_change) THEN
        taken := p_changes;
    ELSE
        -- Successes of jobs for which no job waits are counted at once, unless flows have to count changes that are left. All others go
        -- behind those that are left: changes of one source, and the counts of a flow, keep their order.
        SELECT array_agg(n.source), count(*) > 2000 OR count(n.flow) > 0 INTO left_sources, keeps_order
        FROM (SELECT * FROM {schema}.flow_change n ORDER BY n.number LIMIT 2001) n;
        SELECT array_agg(c.change ORDER BY c.place) FILTER (WHERE c.goes_behind),
            array_agg(c.change ORDER BY c.place) FILTER (WHERE NOT c.goes_behind)
        INTO put_behind, counted
        FROM (
            SELECT CAST(ROW(u.number, u.flow, u.root, u.source_kind, u.source, u.change, u.outcome) AS {schema}.flow_change) AS change,
                u.place, keeps_order OR u.change <> 'succeeded' OR u.source IN (SELECT o.source FROM unnest(left_sources) AS o (source))
                    OR EXISTS (SELECT FROM {schema}.condition w WHERE w.source_kind = u.source_kind AND w.source = u.source)
                    AS goes_behind
            FROM unnest(p_changes) WITH ORDINALITY AS u (number, flow, root, source_kind, source, change, outcome, place)
        ) c;
        PERFORM {schema}.put_changes_1(put_behind);
        WITH deleted AS (
            DELETE FROM {schema}.flow_change c WHERE c.number = ANY (ARRAY(
                SELECT n.number FROM {schema}.flow_change n
                WHERE n.root = ANY (roots)
                    OR takes_orphans AND NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.number = n.root)
                ORDER BY n.number LIMIT 2000
            )) RETURNING c.*
        )
        SELECT array_agg(CAST(ROW(d.*) AS {schema}.flow_change) ORDER BY d.number) INTO taken FROM deleted d;
    END IF;
    IF taken IS NULL AND counted IS NULL THEN
        RETURN;
    END IF;
    changes := {schema}.find_changes_1(taken) || {schema}.count_changes_1(p_now, counted || taken) || {schema}.find_replayed_1(taken);
    WHILE changes <> '{}' AND available > 0 LOOP
        -- The first change of each source; later ones follow in the next round, or stay behind a blocked one. Sources that no
        -- condition names are left out.
        SELECT coalesce(array_agg(c.change ORDER BY c.place) FILTER (WHERE c.nth = 1 AND NOT c.is_blocked), '{}'),
            coalesce(array_agg(c.change ORDER BY c.place) FILTER (WHERE c.nth > 1 AND NOT c.is_blocked), '{}'),
            blocked || array_agg(c.change ORDER BY c.place) FILTER (WHERE c.is_blocked)
        INTO level, changes, blocked
        FROM (
            SELECT CAST(ROW(u.number, u.flow, u.root, u.source_kind, u.source, u.change, u.outcome) AS {schema}.flow_change) AS change,
                u.place, row_number() OVER (PARTITION BY u.source_kind, u.source ORDER BY u.place) AS nth,
                (u.source_kind, u.source) IN (SELECT b.source_kind, b.source FROM unnest(blocked) b) AS is_blocked
            FROM unnest(changes) WITH ORDINALITY
                AS u (number, flow, root, source_kind, source, change, outcome, place)
            WHERE EXISTS (SELECT FROM {schema}.condition w WHERE w.source_kind = u.source_kind AND w.source = u.source)
        ) c;
        EXIT WHEN level = '{}';
        waiters := {schema}.lock_waiters_1(level, roots, available);
        roots := waiters.roots;
        available := CASE WHEN waiters.is_cut THEN 0 ELSE available - waiters.number END;
        IF waiters.met <> '{}' THEN
            to_notify := to_notify || {schema}.meet_conditions_1(p_now, waiters.met);
        END IF;
        ends := '{}';
        IF waiters.impossible <> '{}' THEN
            waiters.ends := {schema}.cancel_dependents_1(p_now, waiters.impossible);
            ends := waiters.ends;
        END IF;
        IF waiters.open <> '{}' THEN
            waiters.ends := {schema}.reopen_dependents_1(p_now, waiters.open);
            IF waiters.ends IS NULL THEN
                waiters.blocked := waiters.blocked || ARRAY(
                    SELECT CAST(ROW(l.*) AS {schema}.flow_change) FROM unnest(level) l WHERE l.change = 'reopened'
                        AND (l.source_kind, l.source) NOT IN (SELECT b.source_kind, b.source FROM unnest(waiters.blocked) b)
                );
            ELSE
                ends := ends || waiters.ends;
                IF EXISTS (SELECT FROM unnest(waiters.open) o WHERE o.needs = '') THEN
                    reopened := ARRAY(SELECT o.waiter FROM unnest(waiters.open) o);
                    DELETE FROM {schema}.failed_member m WHERE m.seq = ANY (reopened);
                    to_notify := to_notify || {schema}.resume_dependents_1(p_now, reopened);
                END IF;
            END IF;
        END IF;
        IF waiters.is_cut THEN
            changes := level || changes;
            stays_blocked := waiters.blocked <> '{}';
        ELSE
            blocked := blocked || waiters.blocked;
        END IF;
        changes := changes || ends || {schema}.count_changes_1(p_now, ends);
    END LOOP;
    is_cut := changes <> '{}' AND NOT stays_blocked;
    changes := blocked || changes;
    IF changes <> '{}' THEN
        INSERT INTO {schema}.flow_change (number, root, source_kind, source, change) OVERRIDING SYSTEM VALUE
        SELECT c.number, c.root, c.source_kind, c.source, c.change FROM unnest(changes) c WHERE c.number IS NOT NULL;
        INSERT INTO {schema}.flow_change (root, source_kind, source, change)
        SELECT c.root, c.source_kind, c.source, c.change
        FROM unnest(changes) WITH ORDINALITY AS c (number, flow, root, source_kind, source, change, outcome, place)
        WHERE c.number IS NULL ORDER BY c.place;
    END IF;
END $$;

-- name: count_changes
-- Count the changes of members in their flows, and these flows in theirs.
-- Inputs: the time; the changes; those that no flow counts are left out
-- Result: the changes of flows that follow
-- Locks: rows of `flow`. The caller has locked their roots, so that no other transaction changes them.
CREATE OR REPLACE FUNCTION {schema}.count_changes_1(p_now int8, p_changes {schema}.flow_change[]) RETURNS {schema}.flow_change[]
LANGUAGE plpgsql AS $$
DECLARE
    counts record;  -- how many members of each flow ended, as arrays; fewer after a replay
    failing int8[];  -- the flows with members that did not complete
    changes {schema}.flow_change[] := '{}';
BEGIN
    SELECT array_agg(c.flow) AS flows, array_agg(c.ended) AS ended, array_agg(c.completed) AS completed, array_agg(c.failed) AS failed,
        array_agg(c.cancelled) AS cancelled, array_agg(c.is_late) AS late, array_agg(c.flow) FILTER (WHERE c.failed + c.cancelled > 0) AS failing
    INTO counts
    FROM (
        SELECT u.flow, sum(u.step) AS ended, coalesce(sum(u.step) FILTER (WHERE u.outcome = 'completed'), 0) AS completed,
            coalesce(sum(u.step) FILTER (WHERE u.outcome = 'failed'), 0) AS failed,
            coalesce(sum(u.step) FILTER (WHERE u.outcome IN ('cancelled', 'late')), 0) AS cancelled,
            coalesce(bool_or(u.outcome = 'late'), false) AS is_late
        FROM (
            SELECT u.flow, u.outcome, CASE u.change WHEN 'reopened' THEN -1 ELSE 1 END AS step
            FROM unnest(p_changes) u WHERE u.flow > 0
        ) u GROUP BY u.flow
    ) c;
    failing := counts.failing;
    WHILE counts.flows IS NOT NULL LOOP  -- then the flows of which these are members
        WITH counted AS (
            UPDATE {schema}.flow f SET unfinished = f.unfinished - c.ended, completed = f.completed + c.completed,
                failed = f.failed + c.failed, cancelled = f.cancelled + c.cancelled + CASE WHEN c.is_late THEN f.max_failed ELSE 0 END,
                added = f.added + CASE WHEN c.is_late THEN f.max_failed ELSE 0 END,
                finished_at = CASE WHEN f.unfinished - c.ended = 0 THEN p_now END
            FROM unnest(counts.flows, counts.ended, counts.completed, counts.failed, counts.cancelled, counts.late)
                AS c (flow, ended, completed, failed, cancelled, is_late)
            WHERE f.number = c.flow
            RETURNING f.number, f.id, f.root, f.parent, f.unfinished = 0 AS has_ended, f.unfinished + c.ended = 0 AS had_ended,
                f.failed + f.cancelled > f.max_failed AS has_failed,
                f.failed + f.cancelled - c.failed - c.cancelled - CASE WHEN c.is_late THEN f.max_failed ELSE 0 END > f.max_failed AS had_failed,
                f.failed > 0 AS is_failed, f.failed - c.failed > 0 AS was_failed
        ), noted AS (
            SELECT array_agg(CAST(ROW(NULL, NULL, coalesce(c.root, c.number), 'flow', c.id, c.change, NULL) AS {schema}.flow_change)
                ORDER BY c.number DESC) AS changes
            FROM (
                SELECT c.*, CASE
                    WHEN c.has_ended AND (NOT c.had_ended OR c.has_failed <> c.had_failed)
                        THEN CASE WHEN c.has_failed THEN 'failed' ELSE 'succeeded' END
                    WHEN c.has_ended THEN NULL
                    WHEN c.has_failed AND NOT c.had_failed THEN 'failing'
                    WHEN NOT c.has_failed AND (c.had_ended OR c.had_failed) THEN 'reopened' END AS change
                FROM counted c
            ) c WHERE c.change IS NOT NULL
        ), steps AS (
            SELECT c.parent AS flow, c.has_ended::int4 - c.had_ended::int4 AS ended,
                (c.has_ended AND NOT c.has_failed)::int4 - (c.had_ended AND NOT c.had_failed)::int4 AS completed,
                (c.has_failed AND c.is_failed)::int4 - (c.had_failed AND c.was_failed)::int4 AS failed,
                (c.has_failed AND NOT c.is_failed)::int4 - (c.had_failed AND NOT c.was_failed)::int4 AS cancelled
            FROM counted c WHERE c.parent IS NOT NULL
        ), parents AS (
            SELECT array_agg(s.flow) AS flows, array_agg(s.ended) AS ended, array_agg(s.completed) AS completed,
                array_agg(s.failed) AS failed, array_agg(s.cancelled) AS cancelled, array_agg(false) AS late
            FROM (
                SELECT s.flow, sum(s.ended) AS ended, sum(s.completed) AS completed, sum(s.failed) AS failed, sum(s.cancelled) AS cancelled
                FROM steps s WHERE (s.ended, s.completed, s.failed, s.cancelled) <> (0, 0, 0, 0) GROUP BY s.flow
            ) s
        )
        SELECT n.changes, p.flows, p.ended, p.completed, p.failed, p.cancelled, p.late INTO counts FROM noted n, parents p;
        changes := changes || counts.changes;
    END LOOP;
    IF EXISTS (SELECT FROM unnest(p_changes) u WHERE u.change = 'reopened') THEN
        -- A flow whose last member ended, and one of whose groups runs again, was counted as ended in between.
        changes := ARRAY(
            SELECT CAST(ROW(c.number, c.flow, c.root, c.source_kind, c.source, c.change, c.outcome) AS {schema}.flow_change)
            FROM unnest(changes) WITH ORDINALITY AS c (number, flow, root, source_kind, source, change, outcome, place)
            WHERE c.change NOT IN ('succeeded', 'failed')
                OR NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.id = c.source AND f.unfinished > 0)
            ORDER BY c.place
        );
    END IF;
    IF failing IS NOT NULL THEN  -- each failure of a member cancels those that have not started, also after a replay
        SELECT changes || array_agg(DISTINCT CAST(ROW(NULL, NULL, r.number, 'flow', r.id, 'failing', NULL) AS {schema}.flow_change))
        INTO changes FROM {schema}.flow f JOIN {schema}.flow r ON r.number = coalesce(f.root, f.number)
        WHERE f.number = ANY (failing) AND r.fail_fast AND r.failed + r.cancelled > r.max_failed AND r.unfinished > 0
            AND NOT EXISTS (SELECT FROM unnest(changes) c WHERE c.source = r.id AND c.source_kind = 'flow');
    END IF;
    RETURN changes;
END $$;

-- name: find_changes
-- Find the changes that jobs may wait for among rows of `flow_change`.
-- Inputs: the rows
-- Result: the changes. Those that say `stored` are replaced by the change that a new condition on the source follows, if any. Most
--   are ends of jobs that no condition names: these are left out.
CREATE OR REPLACE FUNCTION {schema}.find_changes_1(p_taken {schema}.flow_change[]) RETURNS {schema}.flow_change[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT CAST(ROW(t.number, NULL, t.root, t.source_kind, t.source, f.change, NULL) AS {schema}.flow_change)
        FROM unnest(p_taken) WITH ORDINALITY AS t (number, flow, root, source_kind, source, change, outcome, place), LATERAL (
            SELECT CASE WHEN t.change <> 'stored' THEN t.change
                ELSE {schema}.find_change_1(t.root, t.source_kind, t.source) END AS change
        ) f
        WHERE f.change IS NOT NULL
            AND EXISTS (SELECT FROM {schema}.condition w WHERE w.source_kind = t.source_kind AND w.source = t.source)
        ORDER BY t.place
    );
END $$;

-- name: find_replayed
-- Find the flows with `fail_fast` of members that were replayed: what their failure cancelled waits again. If a member failed after
-- the last replay, that is cancelled again.
-- Inputs: the rows, which `count_changes_1` has counted
-- Result: the changes of the flows
CREATE OR REPLACE FUNCTION {schema}.find_replayed_1(p_taken {schema}.flow_change[]) RETURNS {schema}.flow_change[]
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM unnest(p_taken) t WHERE t.change = 'reopened' AND t.flow IS NOT NULL) THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(
        SELECT CAST(ROW(NULL, NULL, r.number, 'flow', r.id, c.change, NULL) AS {schema}.flow_change)
        FROM (
            SELECT t.root, max(t.place) FILTER (WHERE t.change = 'reopened') AS replayed,
                max(t.place) FILTER (WHERE t.change <> 'reopened' AND t.outcome <> 'completed') AS failed
            FROM unnest(p_taken) WITH ORDINALITY AS t (number, flow, root, source_kind, source, change, outcome, place)
            WHERE t.flow IS NOT NULL GROUP BY t.root
        ) t JOIN {schema}.flow r ON r.number = t.root AND r.fail_fast
        CROSS JOIN (VALUES (1, 'reopened'), (2, 'failing')) c (place, change)
        WHERE t.replayed IS NOT NULL AND (
            c.change = 'reopened' OR t.failed > t.replayed AND r.failed + r.cancelled > r.max_failed AND r.unfinished > 0
        )
        ORDER BY r.number, c.place
    );
END $$;

-- name: find_change
-- Find the change of a source that a new condition on it follows.
-- Inputs: the root, the kind and the id of the source
-- Result: succeeded, failing or failed; NULL: none yet. If another transaction is changing the source, the row of `flow_change` is
--   added again.
-- Locks: the row of the job in SHARE mode, if it is not locked. A transaction that ends a job locks this row before it reads the
--   conditions on it. So either this one sees the end, or that one sees the new condition.
CREATE OR REPLACE FUNCTION {schema}.find_change_1(p_root int8, p_kind text, p_source bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    source_flow {schema}.flow;
    job_seq int8;
    ended_state int2;
BEGIN
    IF p_kind = 'flow' THEN
        SELECT f.* INTO source_flow FROM {schema}.flow f WHERE f.id = p_source;
        RETURN CASE WHEN NOT FOUND THEN 'failed'
            WHEN source_flow.failed + source_flow.cancelled > source_flow.max_failed
                THEN CASE source_flow.unfinished WHEN 0 THEN 'failed' ELSE 'failing' END
            WHEN source_flow.unfinished = 0 THEN 'succeeded' END;
    END IF;
    IF p_kind = 'signal' THEN
        RETURN CASE WHEN {schema}.has_signal_1(p_source) THEN 'succeeded' END;
    END IF;
    SELECT j.seq INTO job_seq FROM {schema}.job j WHERE j.id = p_source FOR SHARE SKIP LOCKED;
    IF FOUND THEN
        RETURN CASE WHEN EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = job_seq) THEN 'failed' END;
    END IF;
    IF EXISTS (SELECT FROM {schema}.job j WHERE j.id = p_source) THEN
        INSERT INTO {schema}.flow_change (root, source_kind, source, change) VALUES (p_root, p_kind, p_source, 'stored');
        RETURN NULL;
    END IF;
    SELECT d.state INTO ended_state FROM {schema}.finished_job d, {schema}.horizon h
    WHERE d.id = p_source AND h.what = 'completed' AND (d.finished_at, d.seq) > (h.finished_at, h.seq) LIMIT 1;
    RETURN CASE ended_state WHEN 1 THEN 'succeeded' ELSE 'failed' END;
END $$;

-- name: lock_waiters
-- Find and lock the conditions that changes concern.
-- Inputs: the changes, one for each source; the roots that are locked; the maximum number of conditions
-- Result:
--   met, impossible, open     the conditions that are met, become impossible or are open again
--   number, is_cut            the number of conditions; whether there are more
--   blocked                   the changes that concern a job or a root that another transaction has locked
--   roots                     the roots that are locked
--   ends                      NULL
-- Locks: rows of `dependent` and the roots of these jobs. Rows that another transaction has locked are skipped.
CREATE OR REPLACE FUNCTION {schema}.lock_waiters_1(
    p_level {schema}.flow_change[], p_roots int8[], p_limit int4, OUT met {schema}.condition[], OUT impossible {schema}.condition[],
    OUT open {schema}.condition[], OUT number int4, OUT is_cut bool, OUT blocked {schema}.flow_change[], OUT roots int8[],
    OUT ends {schema}.flow_change[]
) LANGUAGE plpgsql AS $$
DECLARE
    found {schema}.condition[];
    found_changes text[];  -- of their sources
    locked int8[];
    is_any_blocked bool;
BEGIN
    roots := p_roots;
    blocked := '{}';
    SELECT coalesce(array_agg(CAST(ROW(c.waiter, c.is_impossible, c.source_kind, c.source, c.needs) AS {schema}.condition)
            ORDER BY c.waiter, c.source_kind, c.source), '{}'),
        array_agg(c.change ORDER BY c.waiter, c.source_kind, c.source) INTO found, found_changes
    FROM (
        SELECT c.*, l.change FROM unnest(p_level) l CROSS JOIN LATERAL (
            SELECT c.* FROM {schema}.condition c
            WHERE c.source_kind = l.source_kind AND c.source = l.source AND c.is_impossible = (l.change = 'reopened')
                AND NOT (l.change = 'failing' AND c.needs IN ('finished', 'any'))
            ORDER BY c.waiter LIMIT p_limit + 1
        ) c ORDER BY c.waiter, c.source_kind, c.source LIMIT p_limit + 1
    ) c;
    is_cut := cardinality(found) > p_limit;
    found := found[1:p_limit];
    found_changes := found_changes[1:p_limit];
    number := cardinality(found);
    IF number > 0 THEN
        SELECT roots || coalesce(array_agg(r.number), '{}') INTO roots FROM (
            SELECT f.number FROM {schema}.flow f
            WHERE f.number = ANY (ARRAY(
                SELECT d.root FROM unnest(found) c JOIN {schema}.dependent d ON d.seq = c.waiter
                WHERE d.root <> ALL (array_remove(p_roots, NULL))
            )) ORDER BY f.number FOR NO KEY UPDATE SKIP LOCKED
        ) r;
        locked := ARRAY(
            SELECT d.seq FROM {schema}.dependent d
            WHERE d.seq = ANY (ARRAY(SELECT c.waiter FROM unnest(found) c))
                AND (d.root IS NULL OR d.root = ANY (roots) OR NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.number = d.root))
            ORDER BY d.seq FOR UPDATE SKIP LOCKED
        );
        IF EXISTS (SELECT FROM unnest(found) c WHERE c.needs = '') THEN
            locked := locked || {schema}.lock_members_1(ARRAY(SELECT c.waiter FROM unnest(found) c WHERE c.needs = ''));
        END IF;
    END IF;
    SELECT coalesce(array_agg(v.condition ORDER BY v.place) FILTER (WHERE v.verdict = 'met'), '{}'),
        coalesce(array_agg(v.condition ORDER BY v.place) FILTER (WHERE v.verdict = 'impossible'), '{}'),
        coalesce(array_agg(v.condition ORDER BY v.place) FILTER (WHERE v.verdict = 'open'), '{}'),
        bool_or(v.verdict = 'blocked')
    INTO met, impossible, open, is_any_blocked
    FROM (
        SELECT CAST(ROW(c.waiter, c.is_impossible, c.source_kind, c.source, c.needs) AS {schema}.condition) AS condition, c.place,
            CASE WHEN c.waiter NOT IN (SELECT unnest(locked)) THEN 'blocked' WHEN c.change = 'reopened' THEN 'open'
                WHEN c.needs IN ('finished', 'any') OR c.needs <> '' AND (c.change = 'succeeded') = (c.needs = 'success')
                    OR c.needs = '' AND c.change = 'succeeded' THEN 'met'
                ELSE 'impossible' END AS verdict
        FROM unnest(found, found_changes) WITH ORDINALITY AS c (waiter, is_impossible, source_kind, source, needs, change, place)
    ) v;
    IF is_any_blocked THEN
        blocked := ARRAY(
            SELECT DISTINCT CAST(ROW(l.*) AS {schema}.flow_change) FROM unnest(found) c
            JOIN unnest(p_level) l ON l.source_kind = c.source_kind AND l.source = c.source WHERE c.waiter NOT IN (SELECT unnest(locked))
        );
    END IF;
END $$;

-- name: lock_members
-- Lock members that do not wait for a condition, so that no other transaction cancels them because their flow has failed.
-- Inputs: the seqs of the jobs
-- Result: the jobs that are not in `dependent`, and that no other transaction cancels
-- Locks: rows of `failed_member`. Those that another transaction has locked are skipped.
CREATE OR REPLACE FUNCTION {schema}.lock_members_1(p_seqs int8[]) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    others int8[] := ARRAY(
        SELECT s.seq FROM unnest(p_seqs) AS s (seq) WHERE NOT EXISTS (SELECT FROM {schema}.dependent d WHERE d.seq = s.seq)
    );
    due int8[] := ARRAY(SELECT m.seq FROM {schema}.failed_member m WHERE m.seq = ANY (others));
    locked int8[] := ARRAY(
        SELECT m.seq FROM {schema}.failed_member m WHERE m.seq = ANY (due) ORDER BY m.seq FOR UPDATE SKIP LOCKED
    );
BEGIN
    RETURN locked || ARRAY(SELECT s.seq FROM unnest(others) AS s (seq) WHERE s.seq <> ALL (due));
END $$;

-- name: meet_conditions
-- Delete conditions that are met. Resume each suspended job that has no other one, and each durable run.
-- Inputs: the time; the conditions. The rows of `dependent` are locked.
-- Result: the lane of each job that is due now; NULL: none
CREATE OR REPLACE FUNCTION {schema}.meet_conditions_1(p_now int8, p_met {schema}.condition[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    runs int8[] := ARRAY(SELECT m.waiter FROM unnest(p_met) m WHERE m.needs = 'any');
    lanes int4[];
BEGIN
    IF runs <> '{}' THEN
        lanes := {schema}.resume_runs_1(p_now, runs);
        IF cardinality(runs) = cardinality(p_met) THEN
            RETURN lanes;
        END IF;
    END IF;
    DELETE FROM {schema}.condition c USING unnest(p_met) m
    WHERE c.source_kind = m.source_kind AND c.source = m.source AND c.is_impossible = m.is_impossible AND c.waiter = m.waiter;
    RETURN lanes || {schema}.resume_dependents_1(p_now, ARRAY(SELECT m.waiter FROM unnest(p_met) m));
END $$;

-- name: resume_dependents
-- Resume those of these jobs that are suspended and wait for no condition. Durable runs are left out.
-- Inputs: the time; the seqs of the jobs. Their rows of `dependent` are locked.
-- Result: the lane of each job that is due now; NULL: none
CREATE OR REPLACE FUNCTION {schema}.resume_dependents_1(p_now int8, p_seqs int8[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    resumed int8[];
    lanes int4[];
BEGIN
    WITH deleted AS (
        DELETE FROM {schema}.dependent d WHERE d.seq = ANY (p_seqs) AND d.cancelled_at IS NULL AND NOT d.is_run
            AND NOT EXISTS (SELECT FROM {schema}.condition c WHERE c.waiter = d.seq AND c.needs <> '') RETURNING d.seq
    )
    SELECT array_agg(d.seq) INTO resumed FROM deleted d;
    IF resumed IS NULL THEN
        RETURN NULL;
    END IF;
    WITH raised AS (
        UPDATE {schema}.job j SET due = p_now WHERE j.seq = ANY (resumed) AND j.due <= p_now RETURNING j.seq, j.lane
    ), added AS (
        INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
        SELECT p_now, r.seq, r.lane, 0 FROM raised r ORDER BY r.lane, r.seq RETURNING lane
    )
    SELECT array_agg(a.lane) INTO lanes FROM added a;
    IF cardinality(lanes) = cardinality(resumed) THEN
        RETURN lanes;
    END IF;
    INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status)
    SELECT j.due, j.seq, j.lane, 0 FROM {schema}.job j WHERE j.seq = ANY (resumed) AND j.due > p_now;
    RETURN lanes;
END $$;

-- name: cancel_dependents
-- Mark conditions as impossible, and cancel those of their jobs that are suspended. They keep their payload.
-- Inputs: the time; the conditions. The rows of `dependent` are locked.
-- Result: the ends of these jobs
-- Locks: unique keys that no other transaction has locked
CREATE OR REPLACE FUNCTION {schema}.cancel_dependents_1(p_now int8, p_impossible {schema}.condition[])
RETURNS {schema}.flow_change[]
LANGUAGE plpgsql AS $$
DECLARE
    ended record;
BEGIN
    UPDATE {schema}.condition c SET is_impossible = true FROM unnest(p_impossible) m
    WHERE c.source_kind = m.source_kind AND c.source = m.source AND c.is_impossible = m.is_impossible AND c.waiter = m.waiter;
    WITH cancelled AS (
        UPDATE {schema}.dependent d SET cancelled_at = p_now FROM (
            SELECT DISTINCT ON (m.waiter) m.waiter, m.needs FROM unnest(p_impossible) m ORDER BY m.waiter, m.source_kind, m.source
        ) m WHERE d.seq = m.waiter AND d.cancelled_at IS NULL AND NOT d.is_run
        RETURNING d.seq, d.flow, d.root, CASE m.needs WHEN 'failure' THEN 'not needed' ELSE 'dependency' END AS reason
    ), deleted AS (
        DELETE FROM {schema}.job j USING cancelled c WHERE j.seq = c.seq
        RETURNING j.seq, j.due, j.created_at, j.lane, j.id, j.digest, j.unique_key, j.options, j.payload, c.flow, c.root, c.reason
    ), finished AS (
        INSERT INTO {schema}.finished_job (seq, due, created_at, finished_at, lane, state, id, digest, reason, options, payload)
        SELECT d.seq, nullif(d.due, d.created_at), d.created_at, p_now, d.lane, 3, d.id, d.digest, d.reason, d.options, d.payload
        FROM deleted d
    )
    SELECT coalesce(array_agg(CAST(ROW(NULL, d.flow, d.root, 'job', d.id, 'failed', 'cancelled') AS {schema}.flow_change)
            ORDER BY d.seq), '{}') AS changes,
        array_agg(d.seq) FILTER (WHERE d.unique_key IS NOT NULL) AS seqs,
        array_agg(d.lane) FILTER (WHERE d.unique_key IS NOT NULL) AS lanes,
        array_agg(d.unique_key) FILTER (WHERE d.unique_key IS NOT NULL) AS keys
    INTO ended FROM deleted d;
    IF ended.keys IS NOT NULL THEN
        PERFORM {schema}.free_unique_keys_1(ended.seqs, ended.lanes, ended.keys);
    END IF;
    IF EXISTS (SELECT FROM unnest(p_impossible) m WHERE m.needs = '') THEN  -- for `cancel_failed_members_1`
        INSERT INTO {schema}.failed_member (seq)
        SELECT j.seq FROM unnest(p_impossible) m JOIN {schema}.job j ON j.seq = m.waiter
        WHERE m.needs = '' AND NOT EXISTS (SELECT FROM {schema}.dependent d WHERE d.seq = j.seq AND NOT d.is_run)
            AND NOT EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = j.seq)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN ended.changes;
END $$;

-- name: reopen_dependents
-- Open conditions again, and suspend the cancelled jobs that have no impossible condition left.
-- Inputs: the time; the conditions. The rows of `dependent` are locked.
-- Result: the changes of the jobs that are suspended again; NULL: jobs are being pruned, deleted or counted, and nothing was changed
-- Locks: advisory lock 7044 and the row of the horizon, both shared, and the finished jobs, if they are free, so that no other
--   transaction removes the same jobs; unique keys
CREATE OR REPLACE FUNCTION {schema}.reopen_dependents_1(p_now int8, p_open {schema}.condition[])
RETURNS {schema}.flow_change[]
LANGUAGE plpgsql AS $$
DECLARE
    cancelled bytea[];
    locked int8[];
    reopened int8[];
    job record;
    changes {schema}.flow_change[] := '{}';
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044)) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM {schema}.horizon h WHERE h.what = 'completed' FOR SHARE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    cancelled := ARRAY(
        SELECT d.id FROM {schema}.dependent d
        WHERE d.seq = ANY (ARRAY(SELECT m.waiter FROM unnest(p_open) m)) AND d.cancelled_at IS NOT NULL
    );
    locked := ARRAY(SELECT f.seq FROM {schema}.finished_job f WHERE f.id = ANY (cancelled) FOR UPDATE SKIP LOCKED);
    IF EXISTS (SELECT FROM {schema}.finished_job f WHERE f.id = ANY (cancelled) AND f.seq <> ALL (locked)) THEN
        RETURN NULL;
    END IF;
    UPDATE {schema}.condition c SET is_impossible = false FROM unnest(p_open) m
    WHERE c.source_kind = m.source_kind AND c.source = m.source AND c.is_impossible AND c.waiter = m.waiter;
    reopened := ARRAY(
        SELECT d.seq FROM {schema}.dependent d WHERE d.seq = ANY (ARRAY(SELECT m.waiter FROM unnest(p_open) m))
            AND d.cancelled_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM {schema}.condition c WHERE c.waiter = d.seq AND c.is_impossible)
    );
    FOR job IN
        WITH deleted AS (
            DELETE FROM {schema}.finished_job f USING {schema}.dependent d, {schema}.horizon h
            WHERE d.seq = ANY (reopened) AND f.id = d.id AND f.seq = d.seq
                AND h.what = 'completed' AND (f.finished_at, f.seq) > (h.finished_at, h.seq)
            RETURNING f.seq, coalesce(f.due, f.created_at) AS due, f.created_at, f.finished_at, f.lane, f.id, f.digest, f.options,
                f.payload, d.flow, d.root
        )
        SELECT d.*, a.name, CAST({schema}.get_option_1(d.options, 'unique_key') AS json) #>> '{}' AS unique_key,
            CAST({schema}.get_option_1(d.options, 'unique_for') AS float8) AS span,
            CAST({schema}.get_option_1(d.options, 'unique_while') AS json) AS states
        FROM deleted d JOIN {schema}.lane a ON a.id = d.lane ORDER BY d.seq
    LOOP
        INSERT INTO {schema}.job (seq, due, created_at, lane, id, digest, unique_key, flow, options, payload)
        VALUES (job.seq, job.due, job.created_at, job.lane, job.id, job.digest, job.unique_key, job.flow, job.options, job.payload);
        PERFORM {schema}.uncount_finished_1(job.finished_at, job.lane, 3::int2);
        IF job.unique_key IS NOT NULL THEN
            PERFORM {schema}.try_unique_key_1(p_now, job.name, job.unique_key, job.seq, job.id, job.span,
                {schema}.decode_text_array_1(job.states));
        END IF;
        UPDATE {schema}.dependent d SET cancelled_at = NULL WHERE d.seq = job.seq;
        changes := changes || CAST(ROW(NULL, job.flow, job.root, 'job', job.id, 'reopened', 'cancelled') AS {schema}.flow_change);
    END LOOP;
    -- Jobs that were deleted wait for nothing.
    PERFORM {schema}.drop_dependents_1(ARRAY(
        SELECT d.seq FROM {schema}.dependent d WHERE d.seq = ANY (reopened) AND d.cancelled_at IS NOT NULL
    ));
    RETURN changes;
END $$;

-- name: cancel_failed_members
-- Cancel members that wait for a worker or are suspended durable runs, and whose flow has failed. They keep their payload. The caller
-- then continues with `continue_flows_1` in another transaction. A member whose unique key another transaction has locked is left to
-- a later call: a caller's transaction may stay open for long.
-- Inputs: the time or NULL; the maximum number
-- Result: the queues to notify (NULL: no member was examined); whether more may be left that can be cancelled now
-- Locks: as `cancel_locked_members_1`. It waits at most 200 ms for each, and then leaves the members to a later call: exchanges wait for
--   its locks.
CREATE OR REPLACE FUNCTION {schema}.cancel_failed_members_1(p_now int8, p_limit int4, OUT to_notify text[], OUT is_left bool)
LANGUAGE plpgsql SET lock_timeout TO '200ms' AS $$
BEGIN
    is_left := false;
    IF EXISTS (SELECT FROM {schema}.failed_member) THEN
        SELECT c.to_notify, c.is_left INTO to_notify, is_left FROM {schema}.cancel_locked_members_1(p_now, p_limit) c;
    END IF;
EXCEPTION WHEN lock_not_available THEN
    to_notify := NULL;
    is_left := false;
END $$;

-- name: cancel_locked_members
-- Cancel the first members in `failed_member` that no other call cancels.
-- Inputs, result: as of `cancel_failed_members_1`
-- Locks: rows of `failed_member` that are not locked; the durable runs among the members; the share classes of the tenants' queues, as
--   `change_jobs_1`; unique keys that are not locked, by name and key; then as `cancel_job_1`, by lane. A transaction that holds roots
--   must not call it: it waits for limits and jobs, whose holders may wait for roots.
CREATE OR REPLACE FUNCTION {schema}.cancel_locked_members_1(p_now int8, p_limit int4, OUT to_notify text[], OUT is_left bool)
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    members int8[];
    blocked int8[];
    member record;
    answer record;
BEGIN
    members := ARRAY(SELECT m.seq FROM {schema}.failed_member m ORDER BY m.seq LIMIT p_limit FOR UPDATE SKIP LOCKED);
    is_left := false;
    IF members = '{}' THEN
        RETURN;
    END IF;
    PERFORM {schema}.lock_cancelled_runs_1(members);
    IF EXISTS (SELECT FROM {schema}.share_class) THEN
        PERFORM FROM {schema}.share_class f WHERE f.queue IN (
            SELECT a.queue FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane WHERE j.seq = ANY (members)
        ) ORDER BY f.queue, f.rank FOR NO KEY UPDATE;
    END IF;
    WITH wanted AS MATERIALIZED (
        SELECT j.seq, u.name, u.key FROM {schema}.job j JOIN {schema}.lane a ON a.id = j.lane
        JOIN {schema}.unique_key u ON u.name = a.name AND u.key = j.unique_key WHERE j.seq = ANY (members)
    ), locked AS MATERIALIZED (
        SELECT u.name, u.key FROM {schema}.unique_key u WHERE (u.name, u.key) IN (SELECT w.name, w.key FROM wanted w)
        ORDER BY u.name, u.key FOR UPDATE SKIP LOCKED
    )
    SELECT coalesce(array_agg(w.seq), '{}') INTO blocked FROM wanted w WHERE (w.name, w.key) NOT IN (SELECT l.name, l.key FROM locked l);
    IF cardinality(blocked) = cardinality(members) THEN
        RETURN;
    END IF;
    to_notify := '{}';
    is_left := cardinality(members) = p_limit;
    DELETE FROM {schema}.failed_member m WHERE m.seq = ANY (members) AND m.seq <> ALL (blocked);
    FOR member IN
        SELECT j.seq, j.id, j.flow, j.lane FROM {schema}.job j WHERE j.seq = ANY (members) AND j.seq <> ALL (blocked) ORDER BY j.lane, j.seq
    LOOP
        answer := {schema}.cancel_job_1(p_now, member.id, ARRAY['pending', 'scheduled', 'retrying', 'suspended'], 'dependency');
        to_notify := array_remove(to_notify || answer.to_notify, NULL);
        IF answer.answer = 'cancelled' THEN
            INSERT INTO {schema}.dependent (seq, flow, root, cancelled_at, lane, id)
            SELECT member.seq, member.flow, coalesce(f.root, f.number), {schema}.get_write_time_1(p_now), member.lane, member.id
            FROM {schema}.flow f WHERE f.number = abs(member.flow);
        END IF;
    END LOOP;
END $$;

-- name: try_unique_key
-- Assign a unique key to a job, unless another job holds it or another transaction has locked it.
-- Inputs: as for `take_unique_key_1`
-- Locks: the key, for which it waits at most 100 ms
CREATE OR REPLACE FUNCTION {schema}.try_unique_key_1(
    p_now int8, p_name text, p_key text, p_seq int8, p_id bytea, p_span float8, p_states text[]
) RETURNS void
LANGUAGE plpgsql SET lock_timeout TO '100ms' AS $$
BEGIN
    PERFORM {schema}.take_unique_key_1(p_now, p_name, p_key, p_seq, p_id, p_span, p_states);
EXCEPTION WHEN lock_not_available THEN
    NULL;
END $$;

-- name: drop_dependents
-- Delete the conditions of jobs that do not wait any more.
-- Inputs: the seqs of the jobs
CREATE OR REPLACE FUNCTION {schema}.drop_dependents_1(p_seqs int8[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_seqs <> '{}' THEN
        DELETE FROM {schema}.condition c WHERE c.waiter = ANY (p_seqs);
        DELETE FROM {schema}.dependent d WHERE d.seq = ANY (p_seqs);
    END IF;
END $$;

-- name: enqueue_flow
-- Store flows and their jobs. The call is idempotent by the ids of flows and jobs.
-- Inputs: as for `enqueue_1`; then the graph, as a JSON object whose ids are hexadecimal:
--   flows         [id, name, parent or null, members, max_failed, fail_fast, whether it is open] of each flow; groups come after their
--     flow
--   grown         [id, whether it is closed] of each stored flow that gets members
--   members       [flow, whether it counts the job] of the jobs, without duplicates
--   places        for each job the index of its member from 1; 0: it is in no flow
--   conditions    [index of the job from 1, kind of the source, source, needs] of each condition
--   sources       [kind, source] of each source that is no job of this call
--   Then whether what follows from the state of these sources is applied now: not in a caller's transaction
-- Result: codes and holders as of `enqueue_1`. If something in the graph is refused, nothing is stored:
--   unknown       a JSON array of [kind, id] of the flows and jobs that are unknown; NULL: none
--   other         [id, name, parent or null, members, max_failed, fail_fast, failed, cancelled] of a stored flow that is another one or
--     has other groups, or of one that has ended and gets no members; NULL: none
--   to_notify     the lanes of jobs that were resumed
-- Locks: the stored flows that are named FOR KEY SHARE; then as `enqueue_1` and, if changes are applied, `resolve_flows_1`. A call that
--   adds members or closes a flow takes the lock of its root last, and applies no changes.
-- Atomic: one transaction
CREATE OR REPLACE FUNCTION {schema}.enqueue_flow_1(
    p_now int8, p_queues text[], p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[],
    p_digests bytea[], p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[],
    p_keys text[], p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8,
    p_graph json, p_resolves bool,
    OUT codes text, OUT holders bytea[], OUT unknown text, OUT other text, OUT to_notify int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    lane_ids int4[] := {schema}.get_or_create_lanes_1(p_queues, p_names, p_ranks);
    new_flows bytea[];
    named int8[];  -- the flows of members, as in `job`
    ended int8[];
    waiting int8[];
    flows int8[];  -- of each job
    waits bool[];
    is_grown bool := json_array_length(p_graph -> 'grown') > 0;
BEGIN
    BEGIN
        SELECT s.other, s.added INTO other, new_flows FROM {schema}.store_flows_1(now, p_graph -> 'flows') s;
        named := ARRAY(
            SELECT CASE m.member ->> 1 WHEN 'true' THEN f.number ELSE -f.number END
            FROM json_array_elements(p_graph -> 'members') WITH ORDINALITY AS m (member, place)
            LEFT JOIN {schema}.flow f ON f.id = decode(m.member ->> 0, 'hex') ORDER BY m.place
        );
        ended := ARRAY(
            SELECT f.number FROM {schema}.flow f JOIN {schema}.flow r ON r.number = coalesce(f.root, f.number)
            WHERE f.number IN (SELECT abs(n) FROM unnest(named) n) AND r.finished_at IS NOT NULL
                AND (r.id = ANY (new_flows)) IS NOT TRUE
        );
        waiting := ARRAY(SELECT DISTINCT CAST(c ->> 0 AS int8) FROM json_array_elements(p_graph -> 'conditions') c);
        SELECT coalesce(array_agg(m.flow ORDER BY m.place), '{}'), coalesce(array_agg(
            CASE WHEN m.flow IS NULL OR abs(m.flow) <> ALL (ended) THEN m.place IN (SELECT unnest(waiting)) END ORDER BY m.place), '{}')
        INTO flows, waits
        FROM (
            SELECT named[CAST(p.member AS int4)] AS flow, p.place
            FROM json_array_elements_text(p_graph -> 'places') WITH ORDINALITY AS p (member, place)
        ) m;
        unknown := {schema}.list_unknown_1(p_graph, waits);
        IF other IS NOT NULL OR unknown IS NOT NULL THEN
            RAISE EXCEPTION 'the graph is refused' USING ERRCODE = 'NB002';
        END IF;
        IF cardinality(p_ids) > 0 AND NOT {schema}.enqueue_members_1(
            now, lane_ids, p_lanes, p_ids, p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_since, flows, waits)
        THEN
            SELECT c.codes, c.holders INTO codes, holders FROM {schema}.enqueue_each_1(
                now, p_names, lane_ids, p_lanes, p_ids, p_digests, p_payloads, p_options, p_ats, p_afters,
                p_keys, p_spans, p_states, p_on_duplicate, p_max_waits, p_since, flows, waits
            ) c;
        END IF;
        IF NOT coalesce(codes ~ '[xt]', false) AND is_grown THEN
            other := {schema}.grow_flows_1(now, p_graph -> 'grown', p_ids, codes, flows);
        END IF;
        IF codes ~ '[xt]' OR other IS NOT NULL THEN
            RAISE EXCEPTION 'the graph is refused' USING ERRCODE = 'NB002';
        END IF;
    EXCEPTION WHEN SQLSTATE 'NB002' THEN
        RETURN;
    END;
    IF new_flows IS NOT NULL AND codes ~ 'e' THEN
        PERFORM {schema}.count_stored_members_1(p_ids, codes, flows, new_flows, p_since);
    END IF;
    IF waiting <> '{}' THEN
        PERFORM {schema}.store_conditions_1(p_ids, codes, p_graph, new_flows);
    END IF;
    IF EXISTS (
        SELECT FROM {schema}.flow f JOIN {schema}.flow r ON r.number = coalesce(f.root, f.number)
        WHERE f.number = ANY (named) AND r.fail_fast)
    THEN
        PERFORM {schema}.store_fail_fast_1(p_ids, codes, flows, new_flows);
    END IF;
    IF p_resolves AND (is_grown OR new_flows IS NOT NULL) THEN
        to_notify := {schema}.resume_times_1(now);
    END IF;
    IF p_resolves AND NOT is_grown AND EXISTS (SELECT FROM {schema}.flow_change) THEN
        SELECT enqueue_flow_1.to_notify || r.to_notify INTO to_notify FROM {schema}.resolve_flows_1(now) r;
    END IF;
END $$;

-- name: store_flows
-- Store the flows that are new. A group without members ends at once.
-- Inputs: the time; the flows, as for `enqueue_flow_1`
-- Result: the values of a stored flow that is another one with the same id or has other groups, as of `enqueue_flow_1` (NULL: none);
--   the ids of the flows that were new
-- Locks: stored flows FOR KEY SHARE; waits for a transaction that is storing one of the flows
CREATE OR REPLACE FUNCTION {schema}.store_flows_1(p_now int8, p_flows json, OUT other text, OUT added bytea[])
LANGUAGE plpgsql AS $$
DECLARE
    new record;
    stored record;
    kept bytea[];                       -- the flows of the call that were stored before
    parent {schema}.flow;
BEGIN
    FOR new IN
        SELECT decode(f ->> 0, 'hex') AS id, f ->> 1 AS name, decode(f ->> 2, 'hex') AS parent, CAST(f ->> 3 AS int8) AS members,
            CAST(f ->> 4 AS int8) AS max_failed, CAST(f ->> 5 AS bool) AS fail_fast,
            CAST(CAST(f ->> 6 AS bool) AS int4) AS is_open
        FROM json_array_elements(p_flows) f
    LOOP
        FOR attempt IN 1..2 LOOP  -- the second one finds a flow that another transaction has just stored
            SELECT f.*, (SELECT p.id FROM {schema}.flow p WHERE p.number = f.parent) AS parent_id INTO stored
            FROM {schema}.flow f WHERE f.id = new.id FOR KEY SHARE OF f;
            IF FOUND THEN
                IF (stored.name, stored.members, stored.max_failed, stored.fail_fast)
                        <> (new.name, new.members, new.max_failed, new.fail_fast)
                    OR stored.parent_id IS DISTINCT FROM new.parent
                THEN
                    other := CAST(json_build_array(encode(stored.id, 'hex'), stored.name, encode(stored.parent_id, 'hex'),
                        stored.members, stored.max_failed, stored.fail_fast, stored.failed, stored.cancelled) AS text);
                    RETURN;
                END IF;
                kept := kept || new.id;
                EXIT;
            END IF;
            SELECT f.* INTO parent FROM {schema}.flow f WHERE f.id = new.parent;
            IF new.parent = ANY (kept) THEN  -- the stored flow does not count this group, which would never end
                other := CAST(json_build_array(encode(parent.id, 'hex'), parent.name,
                    (SELECT encode(p.id, 'hex') FROM {schema}.flow p WHERE p.number = parent.parent),
                    parent.members, parent.max_failed, parent.fail_fast, parent.failed, parent.cancelled) AS text);
                RETURN;
            END IF;
            INSERT INTO {schema}.flow (
                id, parent, root, members, added, unfinished, max_failed, fail_fast, created_at, grown_at, finished_at, name)
            VALUES (new.id, parent.number, coalesce(parent.root, parent.number), new.members, new.is_open, new.members + new.is_open,
                new.max_failed, new.fail_fast, p_now, CASE new.is_open WHEN 1 THEN p_now END,
                CASE WHEN new.members + new.is_open = 0 THEN p_now END, new.name)
            ON CONFLICT (id) DO NOTHING;
            IF FOUND THEN
                added := added || new.id;
                PERFORM {schema}.note_feature_1('flows');
                IF new.members + new.is_open = 0 THEN
                    INSERT INTO {schema}.flow_change (flow, root, source_kind, source, change, outcome)
                    SELECT f.parent, coalesce(f.root, f.number), 'flow', f.id, 'succeeded', 'completed'
                    FROM {schema}.flow f WHERE f.id = new.id;
                END IF;
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
END $$;

-- name: grow_flows
-- Count the new members of stored flows, and close flows.
-- Inputs: the time; [id, whether it is closed] of each flow; the ids of the jobs of the call; what happened to each, as of
--   `enqueue_1`; their flows, as in `job`
-- Result: the values of a flow that has ended and would get a member, as of `enqueue_flow_1`; NULL: none
-- Locks: the roots of the flows, as `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.grow_flows_1(p_now int8, p_grown json, p_ids bytea[], p_codes text, p_flows int8[]) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    grown record;
    stored {schema}.flow;
    new_count int8;
    is_missing bool;                    -- a job was taken for one of a flow that has ended
BEGIN
    PERFORM FROM {schema}.flow r WHERE r.number IN (
        SELECT coalesce(f.root, f.number) FROM {schema}.flow f JOIN json_array_elements(p_grown) g ON f.id = decode(g ->> 0, 'hex')
    ) ORDER BY r.number FOR NO KEY UPDATE;
    FOR grown IN
        SELECT decode(g ->> 0, 'hex') AS id, CAST(g ->> 1 AS bool) AS is_closed FROM json_array_elements(p_grown) g
    LOOP
        SELECT f.* INTO stored FROM {schema}.flow f WHERE f.id = grown.id;
        SELECT count(*) FILTER (WHERE m.is_new), coalesce(bool_or(NOT m.is_new
            AND {schema}.find_digest_1(m.id, {schema}.get_lowest_time_1()) IS NULL), false)
        INTO new_count, is_missing FROM (
            SELECT g.id, p_codes IS NULL OR substr(p_codes, CAST(g.place AS int4), 1) = 'c' AS is_new
            FROM unnest(p_ids, p_flows) WITH ORDINALITY AS g (id, flow, place) WHERE g.flow = stored.number
        ) m;
        IF is_missing OR stored.unfinished = 0 AND new_count > 0 THEN
            RETURN CAST(json_build_array(encode(stored.id, 'hex'), stored.name, NULL, stored.members, stored.max_failed,
                stored.fail_fast, stored.failed, stored.cancelled) AS text);
        END IF;
        grown.is_closed := grown.is_closed AND stored.grown_at IS NOT NULL;
        IF new_count > 0 OR stored.grown_at IS NOT NULL THEN
            UPDATE {schema}.flow f SET added = f.added + new_count - CAST(grown.is_closed AS int4),
                unfinished = f.unfinished + new_count, grown_at = CASE WHEN f.grown_at IS NOT NULL AND NOT grown.is_closed THEN p_now END
            WHERE f.number = stored.number;
        END IF;
        IF grown.is_closed THEN  -- the member that stands for those that may come goes away, as one that ends
            INSERT INTO {schema}.flow_change (flow, root, source_kind, source, change)
            VALUES (stored.number, coalesce(stored.root, stored.number), 'open', stored.id, 'succeeded');
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- name: close_late_flows
-- Close the open flows that got no members for a time. The member that stands for those that may come counts as cancelled, with as
-- many others as the flow tolerates (the outcome `late`).
-- Inputs: the time or NULL; how long they got none, in microseconds; the most flows to close
-- Locks: the roots of the flows. Those that another transaction has locked are skipped.
CREATE OR REPLACE FUNCTION {schema}.close_late_flows_1(p_now int8, p_wait int8, p_limit int4) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    latest int8 := {schema}.get_write_time_1(p_now) - p_wait;
BEGIN
    WITH late AS MATERIALIZED (
        SELECT f.number, coalesce(f.root, f.number) AS root FROM {schema}.flow f WHERE f.grown_at < latest
        ORDER BY f.grown_at LIMIT p_limit
    ), roots AS MATERIALIZED (
        SELECT r.number FROM {schema}.flow r WHERE r.number IN (SELECT l.root FROM late l)
        ORDER BY r.number FOR NO KEY UPDATE SKIP LOCKED
    ), closed AS (
        UPDATE {schema}.flow f SET grown_at = NULL FROM late l JOIN roots r ON r.number = l.root
        WHERE f.number = l.number AND f.grown_at < latest RETURNING f.number, f.root, f.id
    )
    INSERT INTO {schema}.flow_change (flow, root, source_kind, source, change, outcome)
    SELECT c.number, coalesce(c.root, c.number), 'open', c.id, 'failed', 'late' FROM closed c;
END $$;

-- name: is_in_same_flow
-- Decide whether a stored job is in the flow that a new job with its id names, or both are in none.
-- Inputs: the id; the options of the new job; the earliest end of a job that counts, as for `enqueue_1`
CREATE OR REPLACE FUNCTION {schema}.is_in_same_flow_1(p_id bytea, p_options text, p_since int8) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
DECLARE
    stored text;
BEGIN
    SELECT j.options INTO stored FROM {schema}.job j WHERE j.id = p_id;
    IF NOT FOUND THEN
        SELECT d.options INTO stored FROM {schema}.finished_job d, {schema}.horizon h
        WHERE d.id = p_id AND d.finished_at >= p_since AND h.what = 'completed' AND (d.finished_at, d.seq) > (h.finished_at, h.seq)
        LIMIT 1;
    END IF;
    RETURN {schema}.get_option_1(stored, 'flow') IS NOT DISTINCT FROM {schema}.get_option_1(p_options, 'flow');
END $$;

-- name: count_stored_members
-- Note the ends of members of new flows that were stored before: they outlived the flow of this id.
-- Inputs: the ids of the jobs; what happened to each, as of `enqueue_1`; their flows, as in `job`; the ids of the new flows; the
--   earliest end of a job that counts, as for `enqueue_1`
-- Locks: rows of `job`
CREATE OR REPLACE FUNCTION {schema}.count_stored_members_1(
    p_ids bytea[], p_codes text, p_flows int8[], p_added bytea[], p_since int8
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    member record;
    ended_state int2;
BEGIN
    FOR member IN
        SELECT g.id, g.flow, j.seq FROM unnest(p_ids, p_flows) WITH ORDINALITY AS g (id, flow, place)
        JOIN {schema}.flow f ON f.number = abs(g.flow) AND f.id = ANY (p_added) LEFT JOIN {schema}.job j ON j.id = g.id
        WHERE substr(p_codes, CAST(g.place AS int4), 1) = 'e' ORDER BY g.place
    LOOP
        IF member.seq IS NOT NULL THEN
            UPDATE {schema}.job j SET flow = member.flow WHERE j.seq = member.seq;
            CONTINUE WHEN NOT EXISTS (SELECT FROM {schema}.dead_letter d WHERE d.seq = member.seq);
            PERFORM {schema}.note_changes_1(ARRAY[member.id], ARRAY[member.flow], 'failed', 'failed');
        ELSE
            SELECT d.state INTO ended_state FROM {schema}.finished_job d WHERE d.id = member.id AND d.finished_at >= p_since LIMIT 1;
            PERFORM {schema}.note_changes_1(ARRAY[member.id], ARRAY[member.flow],
                CASE ended_state WHEN 1 THEN 'succeeded' ELSE 'failed' END, CASE ended_state WHEN 1 THEN 'completed' ELSE 'cancelled' END);
        END IF;
    END LOOP;
END $$;

-- name: list_unknown
-- List the flows and jobs that a graph names and that are not stored, after its own flows were stored; also the jobs that are in
-- none of these.
-- Inputs: the graph, as for `enqueue_flow_1`; for each job NULL if its flow has ended: what it waits for may be gone
-- Result: a JSON array of [kind, hexadecimal id]; NULL: none
-- Locks: the flows FOR KEY SHARE
CREATE OR REPLACE FUNCTION {schema}.list_unknown_1(p_graph json, p_waits bool[]) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    roots int8[] := ARRAY(
        SELECT coalesce(f.root, f.number) FROM (
            SELECT n FROM json_array_elements(p_graph -> 'flows') n
            UNION ALL
            SELECT g FROM json_array_elements(p_graph -> 'grown') g
        ) n (flow) JOIN {schema}.flow f ON f.id = decode(n.flow ->> 0, 'hex')
    );
    missing text;
BEGIN
    WITH named AS MATERIALIZED (
        SELECT s ->> 0 AS kind, decode(s ->> 1, 'hex') AS id FROM json_array_elements(p_graph -> 'sources') s
        WHERE array_position(p_waits, NULL) IS NULL OR EXISTS (
            SELECT FROM json_array_elements(p_graph -> 'conditions') c
            WHERE c ->> 1 = s ->> 0 AND c ->> 2 = s ->> 1 AND p_waits[CAST(c ->> 0 AS int4)] IS NOT NULL
        )
        UNION
        SELECT 'flow', decode(m ->> 0, 'hex') FROM json_array_elements(p_graph -> 'members') m WHERE m ->> 1 = 'true'
        UNION
        SELECT 'flow', decode(g ->> 0, 'hex') FROM json_array_elements(p_graph -> 'grown') g
        UNION
        SELECT 'flow', decode(f ->> 2, 'hex') FROM json_array_elements(p_graph -> 'flows') f WHERE f ->> 2 IS NOT NULL
    ), known AS MATERIALIZED (
        SELECT f.id FROM {schema}.flow f WHERE f.id IN (SELECT n.id FROM named n WHERE n.kind = 'flow') FOR KEY SHARE
    )
    SELECT CAST(json_agg(json_build_array(n.kind, encode(n.id, 'hex'))) AS text) INTO missing FROM named n
    WHERE CASE n.kind WHEN 'flow' THEN NOT EXISTS (SELECT FROM known k WHERE k.id = n.id)
        ELSE {schema}.find_digest_1(n.id, {schema}.get_lowest_time_1()) IS NULL
            OR NOT coalesce({schema}.find_root_1('job', n.id) = ANY (roots), false) END;
    RETURN missing;
END $$;

-- name: enqueue_members
-- Store new jobs all at once, if none of their ids exists and none has a unique key.
-- Inputs: the time; the numbers of the lanes; then as for `enqueue_1`; for each job its flow as in `job`, and whether it is
--   suspended (NULL: its flow has ended)
-- Result: whether the jobs were stored; false: call `enqueue_each_1`
-- Atomic: as `enqueue_1`
CREATE OR REPLACE FUNCTION {schema}.enqueue_members_1(
    p_now int8, p_lane_ids int4[], p_lanes int4[], p_ids bytea[], p_digests bytea[], p_payloads bytea[], p_options text[],
    p_ats int8[], p_afters int8[], p_keys text[], p_since int8, p_flows int8[], p_waits bool[]
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    any_waits bool := true = ANY (p_waits);
    sorted_ids bytea[];
BEGIN
    IF p_keys IS NOT NULL OR array_position(p_waits, NULL) IS NOT NULL OR EXISTS (SELECT FROM unnest(p_ats) a WHERE a < p_now) THEN
        RETURN false;
    END IF;
    WITH given AS (
        SELECT g.*, p_lane_ids[g.lane] AS lane_id
        FROM unnest(p_lanes, p_ids, p_digests, p_options, p_payloads, p_ats, p_afters, p_flows) WITH ORDINALITY
            AS g (lane, id, digest, options, payload, at, after, flow, place)
    ), inserted AS (
        INSERT INTO {schema}.job (due, created_at, lane, id, digest, flow, options, payload)
        SELECT coalesce(g.at, p_now + coalesce(g.after, 0)), p_now, g.lane_id, g.id, g.digest, g.flow, g.options, g.payload
        FROM given g ORDER BY g.place
        RETURNING seq, due, lane, id, flow
    ), stored AS MATERIALIZED (
        SELECT i.*, any_waits AND i.id IN (SELECT g.id FROM unnest(p_ids, p_waits) AS g (id, waits) WHERE g.waits) AS waits FROM inserted i
    ), suspended AS (
        INSERT INTO {schema}.dependent (seq, flow, root, lane, id)
        SELECT s.seq, s.flow, coalesce(f.root, f.number), s.lane, s.id
        FROM stored s LEFT JOIN {schema}.flow f ON f.number = abs(s.flow) WHERE s.waits
    ), delayed AS (
        INSERT INTO {schema}.scheduled (due, seq, lane, attempt_status)
        SELECT s.due, s.seq, s.lane, 0 FROM stored s WHERE s.due > p_now AND NOT s.waits
    )
    INSERT INTO {schema}.ready (due, seq, lane, attempt_status)
    SELECT s.due, s.seq, s.lane, 0 FROM stored s WHERE s.due <= p_now AND NOT s.waits;
    -- The ids of a flow begin with its id, so few others are between them.
    SELECT array_agg(i ORDER BY i) INTO sorted_ids FROM unnest(p_ids) i;
    IF EXISTS (
            SELECT FROM {schema}.finished_job d
            WHERE d.id BETWEEN sorted_ids[1] AND sorted_ids[cardinality(sorted_ids)] AND d.finished_at >= p_since
        ) AND EXISTS (SELECT FROM {schema}.finished_job d WHERE d.id = ANY (p_ids) AND d.finished_at >= p_since)
    THEN
        RAISE unique_violation;
    END IF;
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END $$;

-- name: store_conditions
-- Store the conditions of new jobs. Sources that were stored before are noted: they may have ended.
-- Inputs: the ids of the jobs; what happened to each, as of `enqueue_1`; the graph, as for `enqueue_flow_1`; the new flows
CREATE OR REPLACE FUNCTION {schema}.store_conditions_1(p_ids bytea[], p_codes text, p_graph json, p_added bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH given AS MATERIALIZED (
        SELECT i.id, i.place, p_codes IS NULL OR substr(p_codes, CAST(i.place AS int4), 1) = 'c' AS is_new
        FROM unnest(p_ids) WITH ORDINALITY AS i (id, place)
    ), named AS MATERIALIZED (
        SELECT DISTINCT ON (c.job, c.kind, c.source) g.id, c.kind, c.source, c.needs
        FROM (
            SELECT CAST(c ->> 0 AS int8) AS job, c ->> 1 AS kind, decode(c ->> 2, 'hex') AS source, c ->> 3 AS needs
            FROM json_array_elements(p_graph -> 'conditions') c
        ) c JOIN given g ON g.place = c.job AND g.is_new
        ORDER BY c.job, c.kind, c.source
    ), stored AS (
        INSERT INTO {schema}.condition (waiter, source_kind, source, needs)
        SELECT d.seq, n.kind, n.source, n.needs FROM named n JOIN {schema}.job j ON j.id = n.id
        JOIN {schema}.dependent d ON d.seq = j.seq
    ), old AS (
        SELECT s ->> 0 AS kind, decode(s ->> 1, 'hex') AS id FROM json_array_elements(p_graph -> 'sources') s
        EXCEPT
        SELECT 'flow', a.id FROM unnest(p_added) AS a (id)
        UNION
        SELECT 'job', g.id FROM given g WHERE NOT g.is_new
    )
    INSERT INTO {schema}.flow_change (root, source_kind, source, change)
    SELECT {schema}.find_root_1(o.kind, o.id), o.kind, o.id, 'stored' FROM old o
    WHERE EXISTS (SELECT FROM named n WHERE n.kind = o.kind AND n.source = o.id);
END $$;

-- name: store_fail_fast
-- Let new members be cancelled if their flow fails, if it has `fail_fast`. The flows that were stored before may have failed.
-- Inputs: the ids of the jobs; what happened to each, as of `enqueue_1`; their flows, as in `job`; the ids of the new flows
CREATE OR REPLACE FUNCTION {schema}.store_fail_fast_1(p_ids bytea[], p_codes text, p_flows int8[], p_added bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH members AS MATERIALIZED (
        SELECT j.seq, r.number, r.id FROM unnest(p_ids, p_flows) WITH ORDINALITY AS g (id, flow, place)
        JOIN {schema}.flow f ON f.number = g.flow JOIN {schema}.flow r ON r.number = coalesce(f.root, f.number) AND r.fail_fast
        JOIN {schema}.job j ON j.id = g.id
        WHERE p_codes IS NULL OR substr(p_codes, CAST(g.place AS int4), 1) = 'c'
    ), stored AS (
        INSERT INTO {schema}.condition (waiter, source_kind, source, needs) SELECT m.seq, 'flow', m.id, '' FROM members m
    )
    INSERT INTO {schema}.flow_change (root, source_kind, source, change)
    SELECT DISTINCT m.number, 'flow', m.id, 'stored' FROM members m WHERE p_added IS NULL OR m.id <> ALL (p_added);
END $$;

-- name: find_root
-- Find the flow in which a job or a flow is.
-- Inputs: job or flow; the id
-- Result: the number of the flow that is no group; NULL: there is none
CREATE OR REPLACE FUNCTION {schema}.find_root_1(p_kind text, p_id bytea) RETURNS int8
LANGUAGE plpgsql STABLE AS $$
DECLARE
    root int8;
BEGIN
    SELECT coalesce(f.root, f.number) INTO root FROM {schema}.flow f WHERE CASE p_kind WHEN 'flow' THEN f.id = p_id
        ELSE f.number = (SELECT abs(j.flow) FROM {schema}.job j WHERE j.id = p_id) END;
    IF NOT FOUND AND p_kind = 'job' THEN
        SELECT f.number INTO root FROM {schema}.finished_job d JOIN {schema}.flow f
            ON f.id = {schema}.encode_id_1(CAST({schema}.get_option_1(d.options, 'flow') AS json) #>> '{}')
        WHERE d.id = p_id LIMIT 1;
    END IF;
    RETURN root;
END $$;

-- name: continue_flows_in_caller
-- Apply the changes that a caller's transaction has left, and notify.
-- Inputs: the time or NULL; the notification channel
-- Locks: as `resolve_flows_1`
CREATE OR REPLACE FUNCTION {schema}.continue_flows_in_caller_1(p_now int8, p_channel text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM {schema}.notify_queues_1(p_channel, {schema}.continue_flows_1(p_now));
END $$;

-- name: get_flows
-- Read a flow and the groups inside it, at any depth.
-- Inputs: the id
-- Result: one row for each flow: the flow first, then the groups in the order of their ids; no row: there is no such flow
CREATE OR REPLACE FUNCTION {schema}.get_flows_1(p_id bytea) RETURNS TABLE (
    number int8, id bytea, name text, parent bytea, members int8, unfinished int8, completed int8, failed int8, cancelled int8,
    max_failed int8, fail_fast bool, added int8, created_at int8, grown_at int8, finished_at int8
)
LANGUAGE sql STABLE SET jit TO off AS $$
    WITH RECURSIVE tree AS (
        SELECT f.number FROM {schema}.flow f WHERE f.id = p_id
        UNION ALL
        SELECT f.number FROM tree t JOIN {schema}.flow f ON f.parent = t.number AND f.root = (
            SELECT coalesce(o.root, o.number) FROM {schema}.flow o WHERE o.id = p_id
        )
    )
    SELECT f.number, f.id, f.name, p.id, f.members, f.unfinished, f.completed, f.failed, f.cancelled, f.max_failed, f.fail_fast, f.added,
        f.created_at, f.grown_at, f.finished_at
    FROM tree t JOIN {schema}.flow f ON f.number = t.number LEFT JOIN {schema}.flow p ON p.number = f.parent
    ORDER BY f.id <> p_id, f.id
$$;

-- name: list_flows
-- List flows that are no groups, most recently stored first.
-- Inputs: whether only flows are listed that have not ended; only flows with a smaller number; the maximum number of flows
-- Result: as of `get_flows_1`
CREATE OR REPLACE FUNCTION {schema}.list_flows_1(p_running bool, p_before int8, p_limit int4) RETURNS TABLE (
    number int8, id bytea, name text, parent bytea, members int8, unfinished int8, completed int8, failed int8, cancelled int8,
    max_failed int8, fail_fast bool, added int8, created_at int8, grown_at int8, finished_at int8
)
LANGUAGE plpgsql STABLE SET jit TO off AS $$
#variable_conflict use_column
BEGIN
    IF p_running THEN
        RETURN QUERY SELECT f.number, f.id, f.name, CAST(NULL AS bytea), f.members, f.unfinished, f.completed, f.failed, f.cancelled,
            f.max_failed, f.fail_fast, f.added, f.created_at, f.grown_at, f.finished_at
        FROM {schema}.flow f WHERE f.parent IS NULL AND f.finished_at IS NULL AND f.number < p_before
        ORDER BY f.number DESC LIMIT p_limit;
    ELSE
        RETURN QUERY SELECT f.number, f.id, f.name, CAST(NULL AS bytea), f.members, f.unfinished, f.completed, f.failed, f.cancelled,
            f.max_failed, f.fail_fast, f.added, f.created_at, f.grown_at, f.finished_at
        FROM {schema}.flow f WHERE f.parent IS NULL AND f.number < p_before ORDER BY f.number DESC LIMIT p_limit;
    END IF;
END $$;

-- name: list_unmet
-- List the open conditions of a suspended job, or the impossible ones of a cancelled job.
-- Inputs: the id of the job; the maximum number of conditions
-- Result: one row for each condition: kind, id and needs of the condition; the number of all conditions
CREATE OR REPLACE FUNCTION {schema}.list_unmet_1(p_id bytea, p_limit int4) RETURNS TABLE (
    source_kind text, source bytea, needs text, number int8
)
LANGUAGE sql STABLE SET jit TO off AS $$
    SELECT c.source_kind, c.source, c.needs, count(*) OVER ()
    FROM (
        SELECT j.seq FROM {schema}.job j WHERE j.id = p_id
        UNION
        SELECT f.seq FROM {schema}.finished_job f WHERE f.id = p_id
    ) j JOIN {schema}.dependent d ON d.seq = j.seq JOIN {schema}.condition c ON c.waiter = d.seq
    WHERE c.is_impossible = (d.cancelled_at IS NOT NULL) AND (c.is_impossible OR c.needs <> '') ORDER BY c.source_kind, c.source LIMIT p_limit
$$;

-- name: find_running_flow
-- Find since when the oldest flow runs that has not ended. No job in a flow that runs ended before, unless the clock was set back.
-- Result: a time; NULL: no flow runs
CREATE OR REPLACE FUNCTION {schema}.find_running_flow_1() RETURNS int8
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT f.created_at FROM {schema}.flow f WHERE f.parent IS NULL AND f.finished_at IS NULL ORDER BY f.created_at LIMIT 1
    );
END $$;

-- name: is_in_running_flow
-- Test whether a finished job is in a flow that runs. Call it only for options with the text `"flow":`: reading an option is slow.
-- Inputs: its options
CREATE OR REPLACE FUNCTION {schema}.is_in_running_flow_1(p_options text) RETURNS bool
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.flow f WHERE f.finished_at IS NULL
            AND f.id = {schema}.encode_id_1(CAST({schema}.get_option_1(p_options, 'flow') AS json) #>> '{}')
    );
END $$;

-- name: keep_members
-- Keep finished jobs whose flow runs from being pruned: move them, and their results, to the partition of this time. It reads the
-- jobs between the horizon and a time, which are to be pruned next.
-- Inputs: the time; `completed` or `result`: which horizon; the time before which these are pruned (NULL: none are)
-- Locks: advisory lock 7044, shared; the rows that it moves
CREATE OR REPLACE FUNCTION {schema}.keep_members_1(p_now int8, p_what text, p_before int8) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    edge {schema}.horizon;
BEGIN
    SELECT h.* INTO edge FROM {schema}.horizon h WHERE h.what = p_what;
    IF p_before IS NULL OR p_before <= edge.finished_at OR {schema}.find_running_flow_1() IS NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    WITH old AS MATERIALIZED (
        SELECT d.id, d.seq, d.finished_at, d.lane, d.state FROM {schema}.finished_job d
        WHERE d.finished_at >= edge.finished_at AND d.finished_at < p_before
            AND (d.finished_at, d.seq) > (edge.finished_at, edge.seq)
            AND CASE WHEN strpos(d.options, '"flow":') > 0 THEN {schema}.is_in_running_flow_1(d.options) END
    ), moved AS (
        UPDATE {schema}.finished_job d SET finished_at = p_now, ended_at = coalesce(d.ended_at, d.finished_at) FROM old o
        WHERE d.id = o.id AND d.seq = o.seq AND d.finished_at = o.finished_at
        RETURNING d.seq, o.finished_at, o.lane, o.state
    ), results AS (
        UPDATE {schema}.result r SET finished_at = p_now FROM moved m WHERE r.seq = m.seq
    )
    SELECT count({schema}.uncount_finished_1(m.finished_at, m.lane, m.state)) INTO p_before FROM moved m;
END $$;

-- name: keep_dependents
-- Keep jobs that were cancelled because of another job from being pruned as long as failed jobs are kept: a replay of the other job
-- suspends them again. Move them to the partition of this time.
-- Inputs: the time; the times before which completed and failed jobs are pruned (NULL: none are)
-- Locks: advisory lock 7044, shared; the rows that it moves
CREATE OR REPLACE FUNCTION {schema}.keep_dependents_1(p_now int8, p_before int8, p_failed_before int8) RETURNS void
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
BEGIN
    IF p_before IS NULL OR NOT EXISTS (SELECT FROM {schema}.dependent d WHERE d.cancelled_at IS NOT NULL) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    WITH old AS MATERIALIZED (
        SELECT d.id, d.seq, d.finished_at, d.lane, d.state FROM {schema}.finished_job d, {schema}.horizon h
        WHERE h.what = 'completed' AND d.finished_at >= h.finished_at AND d.finished_at < p_before
            AND (d.finished_at, d.seq) > (h.finished_at, h.seq) AND d.state = 3 AND d.reason IN ('dependency', 'not needed')
            AND (p_failed_before IS NULL OR coalesce(d.ended_at, d.finished_at) >= p_failed_before)
    ), moved AS (
        UPDATE {schema}.finished_job d SET finished_at = p_now, ended_at = coalesce(d.ended_at, d.finished_at) FROM old o
        WHERE d.id = o.id AND d.seq = o.seq AND d.finished_at = o.finished_at
        RETURNING o.finished_at, o.lane, o.state
    )
    SELECT count({schema}.uncount_finished_1(m.finished_at, m.lane, m.state)) INTO p_before FROM moved m;
END $$;

-- name: prune_members
-- Remove jobs that were kept because of a flow, and their results, after their flow has ended.
-- Inputs: the times before which completed jobs, failed jobs and results are pruned (NULL: none are); the maximum number
-- Result: the number of removed jobs and results
-- Locks: advisory lock 7044, shared; the rows that it deletes
CREATE OR REPLACE FUNCTION {schema}.prune_members_1(
    p_before int8, p_failed_before int8, p_results_before int8, p_limit int4
) RETURNS int4
LANGUAGE plpgsql SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    pruned int4;
    results int4;
    removed int8[];
BEGIN
    IF p_limit <= 0 OR NOT EXISTS (SELECT FROM {schema}.finished_job d WHERE d.ended_at IS NOT NULL) THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema}.count_new_finished_1', 7044));
    WITH old AS MATERIALIZED (
        SELECT d.id, d.seq, d.finished_at FROM {schema}.finished_job d, {schema}.horizon h
        WHERE d.ended_at IS NOT NULL AND h.what = 'completed'
            AND d.ended_at < CASE WHEN d.state = 3 AND d.reason IN ('dependency', 'not needed') THEN p_failed_before ELSE p_before END
            AND (d.finished_at, d.seq) > (h.finished_at, h.seq) AND NOT {schema}.is_in_running_flow_1(d.options)
        ORDER BY d.ended_at LIMIT p_limit
    ), deleted AS (
        DELETE FROM {schema}.finished_job d USING old o WHERE d.id = o.id AND d.seq = o.seq AND d.finished_at = o.finished_at
        RETURNING d.seq, d.finished_at, d.lane, d.state
    ), deleted_results AS (
        DELETE FROM {schema}.result r USING deleted d WHERE r.seq = d.seq
    )
    SELECT count({schema}.uncount_finished_1(d.finished_at, d.lane, d.state) IS NULL), array_agg(d.seq)
    INTO pruned, removed FROM deleted d;
    PERFORM {schema}.forget_runs_1(removed);
    WITH old AS MATERIALIZED (
        SELECT r.seq FROM {schema}.finished_job d, {schema}.horizon h, {schema}.result r
        WHERE d.ended_at IS NOT NULL AND d.ended_at < p_results_before AND h.what = 'result' AND r.seq = d.seq
            AND (r.finished_at, r.seq) > (h.finished_at, h.seq) AND NOT {schema}.is_in_running_flow_1(d.options)
        ORDER BY d.ended_at LIMIT p_limit - pruned
    ), deleted AS (
        DELETE FROM {schema}.result r USING old o WHERE r.seq = o.seq RETURNING r.seq
    )
    SELECT count(*) INTO results FROM deleted;
    RETURN pruned + results;
END $$;

-- name: prune_flows
-- Delete flows that ended before a time, with their groups, and the conditions of jobs that were pruned.
-- Inputs: the time (NULL: no flow is deleted)
-- Locks: the rows that it deletes; flows and jobs that another transaction has locked are skipped
CREATE OR REPLACE FUNCTION {schema}.prune_flows_1(p_before int8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    roots int8[];
BEGIN
    roots := ARRAY(
        SELECT f.number FROM {schema}.flow f WHERE f.parent IS NULL AND f.finished_at IS NOT NULL AND f.finished_at < p_before
        ORDER BY f.finished_at LIMIT 10000 FOR UPDATE SKIP LOCKED
    );
    IF roots <> '{}' THEN
        DELETE FROM {schema}.condition c WHERE c.needs = '' AND c.source_kind = 'flow'
            AND c.source IN (SELECT f.id FROM {schema}.flow f WHERE f.number = ANY (roots) AND f.fail_fast);
        DELETE FROM {schema}.flow f WHERE f.root = ANY (roots);
        DELETE FROM {schema}.flow f WHERE f.number = ANY (roots);
    END IF;
    PERFORM {schema}.drop_dependents_1(ARRAY(
        SELECT d.seq FROM {schema}.dependent d, {schema}.horizon h
        WHERE h.what = 'completed' AND d.cancelled_at < p_before AND (d.cancelled_at, d.seq) <= (h.finished_at, h.seq)
            AND NOT EXISTS (SELECT FROM {schema}.flow f WHERE f.number = d.root AND f.finished_at IS NULL)
        ORDER BY d.cancelled_at LIMIT 10000 FOR UPDATE OF d SKIP LOCKED
    ));
END $$;
