-- Shared part: the layout of a new job, as the client sends it, and the outcomes of an enqueue.
-- Provides: constants. record_format.py has the same codes under the same names.
--
-- A new job is a job without its first 20 bytes (lane 4 | created 8 | due 8), which the server adds.
-- It begins: flags 1 | priority 1 | digest 16 | id 1 + n.

-- Offsets in a new job
local NEW_JOB_FLAGS, NEW_JOB_DIGEST, NEW_JOB_DIGEST_END, NEW_JOB_ID_LENGTH, NEW_JOB_ID = 1, 3, 18, 19, 20

-- Stands for lane, created and due of a new job.
local NO_FRONT = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- Modes of its due time: at a time, or after a span.
local DUE_AT, DUE_AFTER = 'a', 'd'

-- Outcomes
local CREATED, EXISTS, CONFLICT, TAKEN, REFUSED, REPLACED = 'c', 'e', 'x', 't', 'r', 'p'
-- The lane of the job is new. Nothing was stored.
local UNKNOWN_LANE = 'u'
-- The unique key is taken, and the job that holds it waits.
local REPLACEABLE = 'w'
