-- The tables of format 1. Times are whole microseconds since 1970-01-01 UTC, unless said.
-- Runs in the transaction that also writes the format number.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE lane (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (queue, name)
) STRICT;

-- Everything about a job but where it stands. The payload is written once.
CREATE TABLE job (
    seq INTEGER PRIMARY KEY,            -- enqueue order
    id TEXT NOT NULL UNIQUE,
    lane INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,   -- 0 unfinished, 1 completed, 2 failed, 3 cancelled
    failures INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,   -- of the latest delivery that ended
    settled_fence INTEGER,              -- the token that settled a delivery last: fence ...
    settled_nonce BLOB,                 -- ... and nonce; NULL: none did
    started_at INTEGER,
    finished_at INTEGER,
    reason TEXT,
    options TEXT,                       -- JSON, NULL where all are default
    digest BLOB NOT NULL,
    result BLOB,
    payload BLOB                        -- NULL once completed or cancelled
) STRICT;
CREATE INDEX job_finished ON job (state, finished_at, lane) WHERE state > 0;
CREATE INDEX job_result ON job (finished_at) WHERE result IS NOT NULL;

-- An unfinished job stands in exactly one of these three.
CREATE TABLE ready (
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,              -- minus the priority
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    has_failed INTEGER NOT NULL,             -- 1: it failed before
    PRIMARY KEY (lane, rank, due, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE scheduled (
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    has_failed INTEGER NOT NULL,
    PRIMARY KEY (due, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE lease (
    session INTEGER NOT NULL,           -- session.number
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    exchange_number INTEGER NOT NULL,   -- the exchange that handed it out
    reply_position INTEGER NOT NULL,             -- and where in its reply
    fence INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    leased_at INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt_error (
    seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    body TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (seq, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE progress (
    seq INTEGER PRIMARY KEY,
    fraction REAL NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE TABLE unique_key (
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    id TEXT NOT NULL,
    valid_until INTEGER,                      -- NULL: until the job is finished
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX unique_key_seq ON unique_key (seq) WHERE valid_until IS NULL;

CREATE TABLE session (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,                 -- JSON: what the worker says of itself
    ttl REAL NOT NULL,                  -- seconds
    expires_at REAL NOT NULL,              -- seconds since the host booted
    boot_id TEXT NOT NULL,                 -- which boot that was
    opened_at INTEGER NOT NULL,
    last_exchange INTEGER NOT NULL DEFAULT 0,   -- its number
    last_results TEXT NOT NULL DEFAULT '',   -- of its settlements, one code each
    left_at INTEGER,                    -- when it left
    ended_at INTEGER                     -- when it was rescued or closed: its id never lives again
) STRICT;
CREATE TABLE concurrency_limit (
    name TEXT PRIMARY KEY,
    maximum INTEGER NOT NULL,
    in_use INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE paused_queue (
    queue TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TABLE schedule (
    name TEXT PRIMARY KEY,
    spec BLOB NOT NULL,
    owner TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0,
    last_tick REAL,                     -- epoch seconds, compared as they came
    last_job TEXT
) STRICT, WITHOUT ROWID;
