-- Shared part: the flags and codes of jobs and sessions, the offsets in a job, and the outcomes of an enqueue.
-- Provides: constants. record_format.py has the same flags and codes under the same names.

-- Flags of a job
local FLAG_OPTIONS, FLAG_UNIQUE_KEY, FLAG_LARGE_PAYLOAD, FLAG_FINISHED = 1, 2, 4, 8
local FLAG_ACCEPT_EXISTING, FLAG_PAYLOAD_KEPT, FLAG_REPLACE, FLAG_TENANT = 16, 32, 64, 128
-- The same bit as FLAG_PAYLOAD_KEPT, of a job without FLAG_FINISHED: it is suspended.
local FLAG_SUSPENDED = 32

-- Codes of jobs, in lane_counts and elsewhere. RETRYING and RETRY_SCHEDULED: PENDING and SCHEDULED after a failure.
local PENDING, SCHEDULED, RETRYING, RETRY_SCHEDULED, LEASED = 'P', 'S', 'R', 'T', 'L'
local SUSPENDED, COMPLETED, FAILED, CANCELLED = 'W', 'C', 'F', 'X'

-- Status of a session: open, closed while attempts still run, or closed. In expired_session also: had several leases when it
-- expired.
local SESSION_ALIVE, SESSION_LEFT, SESSION_ENDED, SESSION_SEVERAL = 'a', 'l', 'e', 's'

-- Offsets in a job
local JOB_LANE_END, JOB_CREATED_END, JOB_DUE, JOB_DUE_END, JOB_FLAGS, JOB_PRIORITY = 4, 12, 13, 20, 21, 22
local JOB_DIGEST, JOB_DIGEST_END, JOB_ID_LENGTH, JOB_ID = 23, 38, 39, 40

-- Offsets in a new job, as the client sends it: a job without its first 20 bytes (lane 4 | created 8 | due 8), which the server adds.
-- It begins: flags 1 | priority 1 | digest 16 | id 1 + n.
local NEW_JOB_FLAGS, NEW_JOB_DIGEST, NEW_JOB_DIGEST_END, NEW_JOB_ID_LENGTH, NEW_JOB_ID = 1, 3, 18, 19, 20

-- Outcomes of a signal
local SIGNAL_STORED, SIGNAL_EXISTS, SIGNAL_FINISHED, SIGNAL_UNKNOWN, SIGNAL_FULL = 's', 'e', 'd', 'u', 'f'

-- The most due jobs and runs that a script considers
local MAX_DUE = 500

-- The number of the step of a durable run that a worker ends
local CLEANUP_STEP = '\0\0\0\0'

-- Stands for lane, created and due of a new job.
local NO_FRONT = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- Modes of the due time of a new job: at a time, or after a span.
local DUE_AT, DUE_AFTER = 'a', 'd'

-- Outcomes of an enqueue
local CREATED, EXISTS, CONFLICT, TAKEN, REFUSED, REPLACED = 'c', 'e', 'x', 't', 'r', 'p'
-- The lane of the job is new. Nothing was stored.
local UNKNOWN_LANE = 'u'
-- The unique key is taken, and the job that holds it waits.
local REPLACEABLE = 'w'
