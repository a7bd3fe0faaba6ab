-- Shared part: the flags and codes of jobs and sessions, and the offsets in a job.
-- Provides: constants. record_format.py has the same flags and codes under the same names.

-- Flags of a job
local FLAG_OPTIONS, FLAG_UNIQUE_KEY, FLAG_LARGE_PAYLOAD, FLAG_FINISHED = 1, 2, 4, 8
local FLAG_ACCEPT_EXISTING, FLAG_PAYLOAD_KEPT, FLAG_REPLACE, FLAG_TENANT = 16, 32, 64, 128

-- Codes of jobs, in lane_counts and elsewhere. RETRYING and RETRY_SCHEDULED: PENDING and SCHEDULED after a failure.
local PENDING, SCHEDULED, RETRYING, RETRY_SCHEDULED, LEASED = 'P', 'S', 'R', 'T', 'L'
local COMPLETED, FAILED, CANCELLED = 'C', 'F', 'X'

-- Status of a session: open, closed while attempts still run, or closed. In expired_session also: had several leases when it
-- expired.
local SESSION_ALIVE, SESSION_LEFT, SESSION_ENDED, SESSION_SEVERAL = 'a', 'l', 'e', 's'

-- Offsets in a job
local JOB_LANE_END, JOB_CREATED_END, JOB_DUE, JOB_DUE_END, JOB_FLAGS, JOB_PRIORITY = 4, 12, 13, 20, 21, 22
local JOB_DIGEST, JOB_DIGEST_END, JOB_ID_LENGTH, JOB_ID = 23, 38, 39, 40
