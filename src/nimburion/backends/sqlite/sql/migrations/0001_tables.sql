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
    settled INTEGER,                    -- the token that settled a delivery last: fence ...
    nonce BLOB,                         -- ... and nonce; NULL: none did
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
    retry INTEGER NOT NULL,             -- 1: it failed before
    PRIMARY KEY (lane, rank, due, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE scheduled (
    due INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    retry INTEGER NOT NULL,
    PRIMARY KEY (due, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE lease (
    session INTEGER NOT NULL,           -- session.n
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    number INTEGER NOT NULL,            -- the exchange that handed it out
    place INTEGER NOT NULL,             -- and where in its reply
    fence INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    at INTEGER NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt_error (
    seq INTEGER NOT NULL,
    n INTEGER NOT NULL,
    body TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (seq, n)
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
    until INTEGER,                      -- NULL: until the job is finished
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX unique_key_seq ON unique_key (seq) WHERE until IS NULL;

CREATE TABLE session (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    info TEXT NOT NULL,                 -- JSON: what the worker says of itself
    ttl REAL NOT NULL,                  -- seconds
    expires REAL NOT NULL,              -- seconds since the host booted
    boot TEXT NOT NULL,                 -- which boot that was
    opened_at INTEGER NOT NULL,
    number INTEGER NOT NULL DEFAULT 0,  -- of the latest exchange
    results TEXT NOT NULL DEFAULT '',   -- its results, one letter each
    left_at INTEGER,                    -- when it said goodbye
    dead_at INTEGER                     -- when it was rescued or closed: its id never lives again
) STRICT;
CREATE TABLE gate (
    name TEXT PRIMARY KEY,
    bound INTEGER NOT NULL,
    held INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE paused (
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
