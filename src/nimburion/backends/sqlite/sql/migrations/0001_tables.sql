-- The tables of format 1. Times are whole microseconds since 1970-01-01 UTC, except where a comment says otherwise.
-- This script runs in the transaction that also writes the format number.

-- The number of the format of the file; when an exchange last considered rate limits or limits by key; how often numbers of
-- lanes and tenants were freed or used again.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- A lane is the jobs of one queue and one name. Where a job waits for the turn of its tenant, `lane` is the number of the
-- lane plus 1048576 times the number of the tenant: lane & 1048575 is the lane, and lane >> 20 the tenant (0: none).
CREATE TABLE lane (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (queue, name)
) STRICT;
-- Tenants that have a job which waits for its turn, or had one. Lanes and tenants without jobs are deleted.
CREATE TABLE tenant (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- Jobs of all states. The payload is written once.
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,            -- in the order of enqueueing
    id TEXT NOT NULL UNIQUE,
    lane INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,   -- 0 unfinished, 1 completed, 2 failed, 3 cancelled
    failures INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,   -- the fence of the latest delivery that ended
    settled_fence INTEGER,              -- the token of the latest settlement: its fence ...
    settled_nonce BLOB,                 -- ... and its nonce; NULL: none yet
    started_at INTEGER,
    finished_at INTEGER,
    reason TEXT,
    ended_by TEXT,                      -- the id of the session whose attempt ended the job; NULL: none did
    fingerprint TEXT,                   -- of the error that made the job a dead letter; NULL: it is none
    options TEXT,                       -- JSON; NULL: all have their default
    digest BLOB NOT NULL,
    result BLOB,
    payload BLOB                        -- NULL after cancelled, and after completed unless it is kept
) STRICT;
-- It has the lane too, so that `count_completed_at` reads nothing else.
CREATE INDEX job_finished ON job (state, finished_at, lane) WHERE state > 0;
-- The dead letters. A completion does not change `fingerprint`, so it has no cost for this index.
CREATE INDEX job_failed ON job (seq) WHERE fingerprint IS NOT NULL;
CREATE INDEX job_result ON job (finished_at) WHERE result IS NOT NULL;

-- How many finished jobs each lane has. It changes in the transaction that finishes, replays or deletes jobs.
CREATE TABLE finished_count (
    lane INTEGER NOT NULL,
    state INTEGER NOT NULL,             -- of the jobs, as in `job`
    number INTEGER NOT NULL,
    PRIMARY KEY (lane, state)
) STRICT, WITHOUT ROWID;

-- The next three tables, `parked` and `suspended` say what an unfinished job does. It has a row in exactly one of them.

-- Jobs that are due and wait for a worker.
CREATE TABLE ready (
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,              -- the negative priority
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    has_failed INTEGER NOT NULL,        -- 1: an attempt failed before
    PRIMARY KEY (lane, rank, due, seq)
) STRICT, WITHOUT ROWID;
-- Jobs that wait for their due time.
CREATE TABLE scheduled (
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    has_failed INTEGER NOT NULL,
    PRIMARY KEY (due, seq)
) STRICT, WITHOUT ROWID;
-- Jobs that are leased to a session.
CREATE TABLE lease (
    session INTEGER NOT NULL,           -- session.number
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    exchange_number INTEGER NOT NULL,   -- the exchange that leased the job
    reply_position INTEGER NOT NULL,    -- the position of the job in the reply of that exchange
    fence INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    leased_at INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    charge INTEGER,                     -- what its tenant was charged: see core/fairness.py; NULL: the job took no turn,
    rank INTEGER,                       -- and the negative priority of the job
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

-- Jobs that wait for the end of others, and durable runs that wait for the end of a flow, a signal or a time.
CREATE TABLE suspended (
    seq INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL
) STRICT;
-- The conditions of suspended jobs that are not met, and those for which jobs were cancelled.
CREATE TABLE wait_condition (
    source_kind TEXT NOT NULL,          -- job, flow, signal or time
    source TEXT NOT NULL,               -- its id: see core/runs.py for those of signals and times
    waiter INTEGER NOT NULL,            -- the seq of the job that waits
    awaited TEXT NOT NULL,              -- success, failure, finished or any; or nothing: the job is cancelled if the flow fails
    is_impossible INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (source_kind, source, is_impossible, waiter)
) STRICT, WITHOUT ROWID;
CREATE INDEX wait_condition_waiter ON wait_condition (waiter);
-- Flows, and groups inside them, with the counts of their members.
CREATE TABLE flow (
    number INTEGER PRIMARY KEY,         -- in the order in which they were stored
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    parent TEXT,                        -- the flow of which a group is a member; NULL: it is no group
    members INTEGER NOT NULL,
    unfinished INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    max_failed INTEGER NOT NULL,        -- how many members may fail or be cancelled without failure of the flow
    fail_fast INTEGER NOT NULL,         -- whether its failure cancels the members that have not started
    added INTEGER NOT NULL DEFAULT 0,   -- the members that came later; those of `members` were declared
    created_at INTEGER NOT NULL,
    grown_at INTEGER,                   -- when an open flow got members last; NULL: it is not open
    finished_at INTEGER
) STRICT;
CREATE INDEX flow_open ON flow (grown_at) WHERE grown_at IS NOT NULL;
CREATE INDEX flow_parent ON flow (parent) WHERE parent IS NOT NULL;
CREATE INDEX flow_running ON flow (id) WHERE finished_at IS NULL;
CREATE INDEX flow_finished ON flow (finished_at) WHERE parent IS NULL AND finished_at IS NOT NULL;
-- Changes of jobs and flows whose effects on others are left to a later step.
CREATE TABLE flow_change (
    position INTEGER PRIMARY KEY,
    source_kind TEXT NOT NULL,
    source TEXT NOT NULL,
    change TEXT NOT NULL
) STRICT;

-- The steps of durable runs.
CREATE TABLE step (
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,            -- 0: a worker ends the run when it is cancelled
    at INTEGER NOT NULL,                -- when it was stored
    body BLOB NOT NULL,
    PRIMARY KEY (seq, number)
) STRICT, WITHOUT ROWID;
-- The signals of jobs.
CREATE TABLE signal (
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,            -- in the order in which the job got them
    id TEXT NOT NULL,
    name TEXT NOT NULL,                 -- empty: the run is asked to end as cancelled
    at INTEGER NOT NULL,
    payload BLOB,                       -- NULL: a step has taken the signal
    PRIMARY KEY (seq, number),
    UNIQUE (seq, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX signal_unread ON signal (seq, number, name) WHERE payload IS NOT NULL;

-- Attempts that ended with an error.
CREATE TABLE attempt_error (
    seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    body TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (seq, position)
) STRICT, WITHOUT ROWID;
-- The latest progress that a job reported.
CREATE TABLE progress (
    seq INTEGER PRIMARY KEY,
    fraction REAL NOT NULL,
    message TEXT NOT NULL
) STRICT;
-- Unique keys and the jobs that hold them.
CREATE TABLE unique_key (
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    id TEXT NOT NULL,
    valid_until INTEGER,                -- NULL: until the job is finished
    states TEXT,                        -- JSON array: the job holds the key only in these states; NULL: in each
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX unique_key_seq ON unique_key (seq) WHERE valid_until IS NULL;
CREATE INDEX unique_key_end ON unique_key (valid_until) WHERE valid_until IS NOT NULL;
-- Enqueues that replaced a waiting job, so that a repeated call is recognised.
CREATE TABLE replacement (
    id TEXT PRIMARY KEY,                -- the id of the enqueued job, which is not stored
    job_id TEXT NOT NULL,               -- the job that was replaced
    digest BLOB NOT NULL,               -- of the body that was enqueued
    valid_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX replacement_end ON replacement (valid_until);

-- Worker processes.
CREATE TABLE session (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,          -- JSON: the data that the worker registered
    ttl REAL NOT NULL,                  -- seconds
    expires_at REAL NOT NULL,           -- seconds since the host booted
    boot_id TEXT NOT NULL,              -- identifies that boot
    opened_at INTEGER NOT NULL,
    last_exchange INTEGER NOT NULL DEFAULT 0,   -- the number of the latest exchange
    last_results TEXT NOT NULL DEFAULT '',      -- one code for each settlement of that exchange
    vitals TEXT,                        -- JSON: what the worker reported with its latest heartbeat
    command TEXT,                       -- the latest command that an operator sent to the worker
    left_at INTEGER,                    -- when it was closed while handlers still ran
    ended_at INTEGER,                   -- when it was rescued or closed; its id cannot be used again
    held_several INTEGER NOT NULL DEFAULT 0     -- 1: it had more than one lease when it expired
) STRICT;
-- The limits of job names. The columns after `declared` are in force: what is declared, with the changes of whole limits.
CREATE TABLE limit_rule (
    job_name TEXT NOT NULL,
    limit_name TEXT NOT NULL,
    declared TEXT,                      -- JSON: what their newest worker declared; NULL: only a change makes the limit
    concurrency INTEGER,                -- how many jobs of one key may run; NULL: no maximum
    rate TEXT,                          -- for people; NULL: no rate
    interval INTEGER,                   -- microseconds in which one unit becomes available
    burst INTEGER,                      -- the most units that can be available
    cost INTEGER,                       -- the units that one job takes, unless it has its own cost
    closes_lane INTEGER NOT NULL,       -- 1: all jobs of a lane count for the same key; 0: jobs may be parked
    PRIMARY KEY (job_name, limit_name)
) STRICT, WITHOUT ROWID;
CREATE INDEX limit_rule_kind ON limit_rule (closes_lane, job_name);
-- Changes of limits at run time. They win over what is declared, until they are reset.
CREATE TABLE limit_change (
    name TEXT NOT NULL,                 -- of the limit
    for_key INTEGER NOT NULL,           -- 1: the change is for one key
    key TEXT NOT NULL,                  -- that key
    body TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (name, for_key, key)
) STRICT, WITHOUT ROWID;
-- Keys of limits that are in use, or were a short time ago. The key of the limit of a job name or a queue is ''.
CREATE TABLE limit_use (
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL,
    in_use INTEGER NOT NULL,            -- leased jobs that count for the key
    spent_until INTEGER NOT NULL,       -- the time until which the units taken are used up
    opens_at INTEGER,                   -- when parked jobs are considered again because of the rate; NULL: unknown
    PRIMARY KEY (limit_name, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX limit_use_opening ON limit_use (opens_at) WHERE opens_at IS NOT NULL;
-- The keys for which a leased job counts, except that of the limit of its name.
CREATE TABLE lease_key (
    seq INTEGER NOT NULL,
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (seq, limit_name)
) STRICT, WITHOUT ROWID;
-- Due jobs whose key has no room. They return to `ready` when it has.
CREATE TABLE parked (
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL,
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    has_failed INTEGER NOT NULL,
    PRIMARY KEY (limit_name, key, lane, rank, due, seq)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX parked_seq ON parked (seq);
-- Limits that changed for a job name, and the parked job up to which its jobs were considered again.
CREATE TABLE changed_limit (
    job_name TEXT NOT NULL,
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL DEFAULT '',
    lane INTEGER NOT NULL DEFAULT -1,
    rank INTEGER NOT NULL DEFAULT 0,
    due INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job_name, limit_name)
) STRICT, WITHOUT ROWID;
-- Keys whose maximum changed, and how many of the jobs that are parked for them still return to a lane.
CREATE TABLE changed_key (
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL,
    lane INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (limit_name, key, lane)
) STRICT, WITHOUT ROWID;
-- The share of a tenant among the tenants of a queue, at one job priority: see core/fairness.py.
CREATE TABLE tenant_share (
    queue TEXT NOT NULL,
    rank INTEGER NOT NULL,              -- the negative priority
    tenant INTEGER NOT NULL,
    virtual_time INTEGER NOT NULL,
    mean_run_time INTEGER NOT NULL,     -- 0: no job has ended yet
    unmeasured INTEGER NOT NULL,        -- jobs that were reserved before
    PRIMARY KEY (queue, rank, tenant)
) STRICT, WITHOUT ROWID;
-- The tenants of a queue, at one job priority. The minimum virtual time is the one at which their latest job was reserved.
CREATE TABLE share_class (
    queue TEXT NOT NULL,
    rank INTEGER NOT NULL,
    min_virtual_time INTEGER NOT NULL,
    PRIMARY KEY (queue, rank)
) STRICT, WITHOUT ROWID;
-- The weights of tenants, in hundredths. Others have 100.
CREATE TABLE tenant_weight (
    tenant TEXT PRIMARY KEY,
    units INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- The first job of each group: the jobs in `ready` of one lane, priority and tenant. Triggers keep it.
CREATE TABLE tenant_turn (
    tenant INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    main_lane INTEGER NOT NULL,         -- the lane of the jobs without the tenant
    queue TEXT NOT NULL,
    virtual_time INTEGER NOT NULL,      -- as in `tenant_share`
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (tenant, rank, main_lane)
) STRICT, WITHOUT ROWID;
CREATE INDEX tenant_turn_order ON tenant_turn (main_lane, rank, virtual_time, due, seq);
-- A tenant whose group was empty joins the others, or catches up with the minimum if the job was parked, in all groups of its
-- queue and priority: see core/fairness.py.
CREATE TRIGGER ready_added AFTER INSERT ON ready WHEN NEW.lane > 1048575 BEGIN
    INSERT INTO tenant_share (queue, rank, tenant, virtual_time, mean_run_time, unmeasured)
    SELECT l.queue, NEW.rank, NEW.lane >> 20,
        coalesce(c.min_virtual_time, 0) + iif(
            EXISTS (SELECT 1 FROM parked AS p WHERE p.seq = NEW.seq),
            0,
            min(max(
                iif(coalesce(s.mean_run_time, 0) > 0, s.mean_run_time, 100000 << min(coalesce(s.unmeasured, 0), 9)), 1000
            ), 86400000000) * 100 / coalesce((
                SELECT w.units FROM tenant AS n CROSS JOIN tenant_weight AS w ON w.tenant = n.name WHERE n.id = NEW.lane >> 20
            ), 100)
        ), 0, 0
    FROM lane AS l LEFT JOIN share_class AS c ON c.queue = l.queue AND c.rank = NEW.rank
    LEFT JOIN tenant_share AS s ON s.queue = l.queue AND s.rank = NEW.rank AND s.tenant = NEW.lane >> 20
    WHERE l.id = NEW.lane & 1048575 AND (s.tenant IS NULL OR s.virtual_time < coalesce(c.min_virtual_time, 0)) AND NOT EXISTS (
        SELECT 1 FROM tenant_turn AS t
        WHERE t.tenant = NEW.lane >> 20 AND t.rank = NEW.rank AND t.main_lane = NEW.lane & 1048575
    )
    ON CONFLICT (queue, rank, tenant) DO UPDATE SET virtual_time = excluded.virtual_time;
    UPDATE tenant_turn SET virtual_time = (
        SELECT s.virtual_time FROM tenant_share AS s
        WHERE s.queue = tenant_turn.queue AND s.rank = tenant_turn.rank AND s.tenant = tenant_turn.tenant
    )
    WHERE tenant = NEW.lane >> 20 AND rank = NEW.rank AND queue = (SELECT queue FROM lane WHERE id = NEW.lane & 1048575)
        AND NOT EXISTS (
            SELECT 1 FROM tenant_turn AS t
            WHERE t.tenant = NEW.lane >> 20 AND t.rank = NEW.rank AND t.main_lane = NEW.lane & 1048575
        );
    INSERT INTO tenant_turn (tenant, rank, main_lane, queue, virtual_time, due, seq)
    SELECT s.tenant, NEW.rank, l.id, l.queue, s.virtual_time, NEW.due, NEW.seq
    FROM lane AS l CROSS JOIN tenant_share AS s
    WHERE l.id = NEW.lane & 1048575 AND s.queue = l.queue AND s.rank = NEW.rank AND s.tenant = NEW.lane >> 20
    ON CONFLICT (tenant, rank, main_lane) DO UPDATE SET due = excluded.due, seq = excluded.seq
    WHERE (excluded.due, excluded.seq) < (due, seq);
END;
CREATE TRIGGER ready_removed AFTER DELETE ON ready WHEN OLD.lane > 1048575 BEGIN
    DELETE FROM tenant_turn WHERE tenant = OLD.lane >> 20 AND rank = OLD.rank AND main_lane = OLD.lane & 1048575
        AND NOT EXISTS (SELECT 1 FROM ready AS r WHERE r.lane = OLD.lane AND r.rank = OLD.rank);
    UPDATE tenant_turn SET (due, seq) = (
        SELECT r.due, r.seq FROM ready AS r WHERE r.lane = OLD.lane AND r.rank = OLD.rank ORDER BY r.due, r.seq LIMIT 1
    )
    WHERE tenant = OLD.lane >> 20 AND rank = OLD.rank AND main_lane = OLD.lane & 1048575 AND seq = OLD.seq;
END;
-- The due time of a scheduled job that an exchange reported last, and to which session: others do not look for jobs then.
CREATE TABLE reported_due (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    due INTEGER NOT NULL,
    session INTEGER NOT NULL            -- session.number
) STRICT;
-- Paused queues. A pause whose `until` has passed is not in force.
CREATE TABLE paused_queue (
    queue TEXT PRIMARY KEY,
    paused_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER                       -- NULL: until the queue is resumed
) STRICT, WITHOUT ROWID;

-- What happened to the jobs of one queue and name in an interval, as counted by one process.
CREATE TABLE job_statistics (
    step INTEGER NOT NULL,              -- the length of the interval in seconds; 0: enqueued in a caller's transaction, not counted yet
    start INTEGER NOT NULL,             -- its start in seconds since 1970-01-01 UTC
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,               -- the process that counted; '' for the sum of several
    counters TEXT NOT NULL,             -- JSON
    PRIMARY KEY (step, start, queue, name, source)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_statistics_unmerged ON job_statistics (step, start) WHERE source <> '';
-- What is only stored: the audit log, bulk operations and schedules. The positions of a kind have no gaps, unless one was
-- deleted; so the oldest records are found by position.
CREATE TABLE record (
    kind TEXT NOT NULL,                 -- audit, bulk_operation, schedule or stack
    position INTEGER NOT NULL,          -- in the order in which the records of the kind were added
    id TEXT NOT NULL,
    version INTEGER NOT NULL,           -- the time for a new record; each write adds 1
    created_at INTEGER NOT NULL,
    due INTEGER,                        -- when a process must do something with it; NULL: never
    changed INTEGER NOT NULL DEFAULT 0, -- jobs that were changed together with the record
    held INTEGER NOT NULL DEFAULT 0,    -- jobs that could not be, because another job holds their unique key
    body TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (kind, position)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX record_id ON record (kind, id);
CREATE INDEX record_due ON record (kind, due) WHERE due IS NOT NULL;

-- Jobs with their status: completed, failed, cancelled, processing, retrying, suspended or waiting. A waiting job is scheduled
-- if its due time is in the future, else pending. An unfinished job that waits in no table is processing.
CREATE VIEW job_record AS
SELECT j.*, CASE j.state WHEN 1 THEN 'completed' WHEN 2 THEN 'failed' WHEN 3 THEN 'cancelled' ELSE CASE
    WHEN NOT EXISTS (
        SELECT 1 FROM ready AS r
        WHERE (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq)
    ) AND NOT EXISTS (
        SELECT 1 FROM scheduled AS p WHERE (p.due, p.seq) = (j.due, j.seq)
    ) AND NOT EXISTS (
        SELECT 1 FROM parked AS k WHERE k.seq = j.seq
    ) THEN iif(EXISTS (SELECT 1 FROM suspended AS u WHERE u.seq = j.seq), 'suspended', 'processing')
    WHEN j.failures > 0 THEN 'retrying'
    ELSE 'waiting' END END AS status
FROM job AS j;
