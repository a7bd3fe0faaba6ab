-- Shared part: reads and writes binary records.
-- Provides: functions that read and make records. A name that ends in a number, such as `due8`, holds that many encoded bytes.
--
-- `due 8` is a field of 8 bytes. `id 1 + n` is a length of 1 byte and then that many bytes. All numbers are big-endian.
-- A field of a hash is the job's seq as 8 bytes. Offsets count from 1.
--
-- job               lane 4 | created 8 | due 8 | flags 1 | priority 1 | digest 16 | id 1 + n
--                   | options 4 + n, with FLAG_OPTIONS; those of a member of a flow and those with conditions begin with a space
--                   | tenant whose turn it needs 2 + n, with FLAG_TENANT (and FLAG_OPTIONS)
--                   | unique key 2 + n | span 8 (all ones: until the job ends) | max wait 8 (all ones: none)
--                   | states 1 + n (codes of the states in which it holds the key; none: each); all four with FLAG_UNIQUE_KEY
--                   The head ends here. A job without FLAG_FINISHED continues with its payload.
--                   With FLAG_LARGE_PAYLOAD it has the length of the payload 4 instead; the payload is in the hash payload.
--                   With FLAG_FINISHED it continues with:
--                   code 1 | started 8 | finished 8 | failures 4 | lost 2 | settled 20 | session 4 (zeros: no attempt ended it)
--                   | fence 4 | reason 2 + n (all ones: none); both unless it is completed
--                   | fingerprint of the error 1 + n, only if it failed
--                   | the payload, or its length, if it failed, or has FLAG_PAYLOAD_KEPT (completed, or cancelled for a condition)
-- attempt_state     failures 4 | lost 2 | fence 4 | started 8 | due 8 | settled 20; of a waiting job that was leased before
-- lease             session 4 | fence 4 | nonce 16 | number 8 | started 8 | cancel 1 ('1': cancel was requested)
--                   | failures 4 | lost 2 | index in the reply 2 | member of ready 21
--                   | settled 20, only if the job was settled before, or more follows: charge 8 (all ones: no tenant)
--                   | tenant 2 + n, with a charge | per key of a limit for which the lease counts: limit NUL key 2 + n
-- ready             lane 4 | rank 1 | due 8 | seq 8; the rank is 127 - priority. The byte order is the order of the lane.
-- scheduled         due 8 | seq 8 | lane 4 | rank 1 | code 1 (S or T) | NUL and tenant, if it needs a turn
--                   A suspended run that waits for a time has the code W, and no tenant.
-- session_leases    session 4 | seq 8
-- expired_session   session 4 | status 1 (a expired with one lease or none, s with several, l left before it expired)
-- session_state     session 4 | number of the last exchange 8 | ttl 8 | opened 8 | status 1 (a alive, l left, e ended) | ended 8
--                   | codes of the last settlements
-- history           per failed attempt: time 8 | length 4 | JSON
-- session_id        id | NUL | host
-- paused_queue      until 8 (all ones: until it is resumed) | since 8 | [by, reason] (JSON)
-- record            a map in MessagePack: kind, id, position, version, created_at, due, changed, held, body (JSON); `due` may be
--                   missing. Times are microseconds since 1970.
-- record_order      kind | NUL | position 8 | id
-- record_due        kind | NUL | id
-- unique_key        expiry 8 (all ones: when the job ends) | states 1 + n | id
-- replacement       expiry 8 | digest 16 | id
-- limit             [[limit, maximum or false, interval or false, burst, cost, rate (text)], ...] (MessagePack), by name of the limit
-- declared_limit    the same, without the changes of operators
-- limit_change      time 8 | change (JSON)
-- limit_use         leased jobs, and, if a rate was used: spent until, opens at (- if unknown), with spaces between (decimal)
-- flow              unfinished 4 | completed 4 | failed 4 | cancelled 4 | added 4 | created 8 | finished 8 (zeros: it runs)
--                   | grown 8 (zeros: it is not open) | position 8 | members 4 | max failed 4 | fails fast 1 | parent 2 + n (empty: none) | name
-- flow_order        parent 2 + n (empty: none) | position 8 | id
-- running_flow      position 8 | id
-- condition         source | class 1 (e open, on the end; o open, on success or failure; x impossible) | seq 8 | on 1
--                   A source is kind 1 (j job, f flow, s signal, t time) | id 2 + n. The id of a signal is seq 8 | name. That of a time is
--                   due 8; it is in `unmet` and `scheduled` only.
-- unmet             conditions that are not met 2 | impossible ones 2, also of a flow that fails fast, for which the job does not wait
--                   | the sources of a suspended run. One is enough, so they count as one condition.
-- run_order         seq 8 | s (step) | number 4; or seq 8 | u (unread signal) | number 4 | name; or seq 8 | i | number 4 | id of a signal, also
--                   of one that was taken. Signals are numbered from 1.
-- run_entry         field: seq 8 | s or u | number 4; value: time 8 | body of the step or payload of the signal; or field: seq 8 | i | id of
--                   a signal that is in `run_order`; value: nothing
-- removed_run       seq 8
-- flow_change       number 8 | transition 1 (see planning/flows.lua) | source
-- flow_finished     flow 2 + n | seq 8
-- changed_lane      of a lane: the last member of ready that returned, or nothing; of a lane and a key: how many jobs still return (decimal)
-- parked            limit | NUL | key | NUL | member of ready | NUL and tenant, if it needs a turn
-- parked_lane       member of ready | limit | NUL | key | NUL and tenant, if it needs a turn
-- tenant_job        lane 4 | rank 1 | tenant | NUL | due 8 | seq 8
-- tenant_turn       lane 4 | rank 1 | virtual time 8 | due 8 | seq 8 | tenant
-- tenant_share      virtual time 8 | mean run time 8 | jobs before the first mean 1 | leased jobs 4
--                   | per lane with waiting jobs: lane 4, due 8, seq 8 of the first one
-- share_class       minimum virtual time 8 | tenants with jobs 4 | tenants 4
-- pruned_blocks     Block b holds the seqs 500 b + 1 to 500 b + 500. b -> number of its deleted jobs, until all are deleted.
--                   Then <last -> first and >first -> last, for the first and last block of a run of empty blocks.
--
-- An id is text, or a UUID as NUL and its 16 bytes (see encoding.py). A time is microseconds since 1970 plus 2^63.
-- A session is the number that `session_id` knows. A token is fence 4 | nonce 16. The nonce is 16 random bytes
-- that the worker draws for each exchange. `settled` is the token of the last settlement of the job, or zeros.
-- Codes of lane_counts: P ready, S scheduled, R ready after a failure, T scheduled after a failure, L leased, W suspended,
-- C completed, F failed, X cancelled.
local NEVER = '\255\255\255\255\255\255\255\255'
local NO_FAILURES, NO_COUNTS = '\0\0\0\0', '\0\0\0\0\0\0'
local NO_TOKEN = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local NO_TIME, NO_NUMBER = '\0\0\0\0\0\0\0\0', '\0\0\0\0\0\0\0\0'
local NO_FENCE, FIRST_FENCE = '\0\0\0\0', '\0\0\0\1'
local NO_SESSION = '\0\0\0\0'
local NO_REASON, NO_REASON_LENGTH = '\255\255', 65535
local BLOCK = 500
local MAX_PRIORITY = 127

-- The flags of a completed job without other flags, and of one that keeps its payload; then the same with FLAG_OPTIONS
local PLAIN_FLAGS, PLAIN_KEPT_FLAGS, OPTIONS_FLAGS, OPTIONS_KEPT_FLAGS = '\8', '(', '\9', ')'

-- Offset of the cancel flag in a lease, and its values
local LEASE_CANCEL, CANCEL_REQUESTED, NO_CANCEL = 41, '1', '0'

-- Offsets in a lease: the end of its token, which follows the session; when it began; its end if it has no settled token, and if it has
-- that and no more
local LEASE_TOKEN_END, LEASE_STARTED, LEASE_END, LEASE_SETTLED_END = 24, 33, 70, 90
-- Size of a lease that has no more than a settled token
local LEASE_MORE = 98

-- Offset of the charge in a lease that has one. Its first byte is 255 if there is no tenant.
local LEASE_CHARGE = 91

-- Offsets of the lane number in a lease
local LEASE_LANE, LEASE_LANE_END = 50, 53

-- Offsets in a member of `ready`: its lane has 4 bytes.
local READY_LANE_END, READY_RANK, READY_DUE, READY_SEQ, READY_END = 4, 5, 6, 14, 21

-- Offset of the last byte of a member of `scheduled`, before a tenant
local SCHEDULED_END = 22

-- Offsets in a member of `tenant_turn`
local TURN_RANK, TURN_TIME, TURN_PLACE, TURN_PLACE_END, TURN_TENANT = 5, 6, 14, 29, 30

-- --- job ---

local function has_flag(body, flag)
  return band(byte(body, JOB_FLAGS), flag) ~= 0
end

local function get_lane_number(body)
  return sub(body, 1, JOB_LANE_END)
end

local function get_due(body)
  return sub(body, JOB_DUE, JOB_DUE_END)
end

local function get_rank(body)
  return string.char((MAX_PRIORITY - byte(body, JOB_PRIORITY)) % 256) -- the byte has a sign
end

local function get_id(body)
  return sub(body, JOB_ID, JOB_ID_LENGTH + byte(body, JOB_ID_LENGTH))
end

-- Return the offset of the unique key (of its length), which follows the id, the options and the tenant.
local function find_key_offset(body)
  local offset = JOB_ID + byte(body, JOB_ID_LENGTH)
  if has_flag(body, FLAG_OPTIONS) then
    offset = offset + 4 + (unpack_struct('>I4', body, offset))
    if has_flag(body, FLAG_TENANT) then
      offset = offset + 2 + unpack_struct('>I2', body, offset)
    end
  end
  return offset
end

-- Return the tenant whose turn a job needs, or nil.
local function get_tenant(body)
  if not has_flag(body, FLAG_TENANT) then
    return nil
  end
  local offset = JOB_ID + byte(body, JOB_ID_LENGTH)
  offset = offset + 4 + (unpack_struct('>I4', body, offset))
  return sub(body, offset + 2, offset + 1 + unpack_struct('>I2', body, offset))
end

-- Return what follows a member of a sorted set if its job needs the turn of a tenant.
local function get_tenant_suffix(tenant)
  return tenant and '\0' .. tenant or ''
end

-- The first byte of the options of a member
local MEMBER_MARK = 32

-- Return whether a job is a member of a flow or has conditions.
local function is_member(body)
  return has_flag(body, FLAG_OPTIONS) and byte(body, JOB_ID + byte(body, JOB_ID_LENGTH) + 4) == MEMBER_MARK
end

-- Return the options of a job that has some.
local function get_options(body)
  local offset = JOB_ID + byte(body, JOB_ID_LENGTH)
  return sub(body, offset + 4, offset + 3 + (unpack_struct('>I4', body, offset)))
end

-- Return whether a job is suspended. A finished job that keeps its payload has the same flag.
local function is_suspended(body)
  local flags = byte(body, JOB_FLAGS)
  return band(flags, FLAG_SUSPENDED) ~= 0 and band(flags, FLAG_FINISHED) == 0
end

-- Return a job that is not finished as a suspended one.
local function make_suspended_job(body)
  return sub(body, 1, JOB_DUE_END) .. string.char(byte(body, JOB_FLAGS) + FLAG_SUSPENDED) .. sub(body, JOB_PRIORITY)
end

-- Return a suspended job as one that waits until `due8`.
local function make_resumed_job(body, due8)
  return sub(body, 1, JOB_CREATED_END) .. due8 .. string.char(byte(body, JOB_FLAGS) - FLAG_SUSPENDED) .. sub(body, JOB_PRIORITY)
end

-- Return the offset of the last byte of the head: what follows it changes when the job finishes.
local function find_head_end(body)
  if byte(body, JOB_FLAGS) % FLAG_LARGE_PAYLOAD == 0 then -- neither FLAG_OPTIONS nor FLAG_UNIQUE_KEY
    return JOB_ID_LENGTH + byte(body, JOB_ID_LENGTH)
  end
  local offset = find_key_offset(body)
  if has_flag(body, FLAG_UNIQUE_KEY) then
    offset = offset + 18 + unpack_struct('>I2', body, offset)
    offset = offset + 1 + byte(body, offset)
  end
  return offset - 1
end

-- Return what a finished job has after its head. `fence4` is nil if the job is completed, `fingerprint` unless it
-- failed, and `reason` may be nil; `rest` is the offset of what follows.
local function read_job_end(body)
  local code, started8, finished8, counts, settled, session4, rest
    = unpack_struct('>c1c8c8c6c20c4', body, find_head_end(body) + 1)
  local fence4, reason, fingerprint, length
  if code ~= COMPLETED then
    fence4, length, rest = unpack_struct('>c4I2', body, rest)
    if length ~= NO_REASON_LENGTH then
      reason, rest = sub(body, rest, rest + length - 1), rest + length
    end
  end
  if code == FAILED then
    length = byte(body, rest)
    fingerprint, rest = sub(body, rest + 1, rest + length), rest + 1 + length
  end
  return {
    code = code, started8 = started8, finished8 = finished8, counts = counts, fence4 = fence4, settled = settled,
    session4 = session4, reason = reason, fingerprint = fingerprint, rest = rest,
  }
end

-- Return a finished job. `attempts` is its lease or its attempt state, which has no session; `rest` is what follows the reason.
-- `keeps_payload`: it is completed or cancelled, and keeps its payload.
local function make_finished_job(body, code, attempts, reason, rest, keeps_payload)
  return sub(body, 1, JOB_CREATED_END) .. attempts.due8
    .. string.char(band(byte(body, JOB_FLAGS), 255 - FLAG_SUSPENDED) + FLAG_FINISHED + (keeps_payload and FLAG_PAYLOAD_KEPT or 0)) .. sub(body, JOB_PRIORITY, find_head_end(body))
    .. code .. attempts.started8 .. now8 .. attempts.counts .. attempts.settled .. (attempts.session4 or NO_SESSION)
    .. (code == COMPLETED and '' or attempts.fence4 .. (reason and pack_struct('>I2', #reason) .. reason or NO_REASON)) .. rest
end

-- Return the payload of a job, or its length if it is large; '' if the job has none any more.
local function get_payload_part(body)
  return sub(body, has_flag(body, FLAG_FINISHED) and read_job_end(body).rest or find_head_end(body) + 1)
end

-- Return a finished job as a pending one that is due at `due8`.
local function make_pending_job(body, due8)
  return sub(body, 1, JOB_CREATED_END) .. due8 .. string.char(byte(body, JOB_FLAGS) - FLAG_FINISHED)
    .. sub(body, JOB_PRIORITY, find_head_end(body)) .. get_payload_part(body)
end

-- --- lease and attempt state ---

-- Return the fields of a lease, in `lease` or in a new table. A new table costs 1 us, so a loop over many leases reuses one.
-- `settled` is the token of an earlier settlement, or zeros; `keys` are packed names of keys,
-- `charge` and `tenant` those of a job that had its turn, or nil.
local function read_lease(record, lease)
  lease = lease or {}
  local session4, fence4, nonce, number8, started8, cancel, counts, index, lane4, rank, due8, _, rest
    = unpack_struct('>c4c4c16c8c8c1c6I2c4c1c8c8', record)
  lease.session4, lease.fence4, lease.nonce, lease.number8, lease.started8 = session4, fence4, nonce, number8, started8
  lease.is_cancel_requested, lease.counts, lease.index = cancel == CANCEL_REQUESTED, counts, index
  lease.lane4, lease.rank, lease.due8 = lane4, rank, due8
  lease.settled, lease.keys, lease.charge, lease.tenant = NO_TOKEN, nil, nil, nil
  if rest < #record then
    lease.settled = sub(record, rest, rest + 19)
    if rest + 20 < #record then
      rest = rest + 28
      if sub(record, rest - 8, rest - 1) ~= NEVER then
        lease.charge = unpack_struct('>I8', record, rest - 8)
        lease.tenant, rest = unpack_struct('>I2c0', record, rest)
      end
      lease.keys = rest <= #record and sub(record, rest) or nil
    end
  end
  return lease
end

-- Return lane, rank and tenant of a lease whose job had its turn; nothing of another one. `record` may be false.
local function read_turn(record)
  if record and #record > LEASE_MORE and byte(record, LEASE_CHARGE) ~= 255 then
    local lane4, rank = unpack_struct('>c4c1', record, LEASE_LANE)
    return lane4, rank, (unpack_struct('>I2c0', record, LEASE_MORE + 1))
  end
end

-- Return the lease with its cancel flag set.
local function mark_lease_cancelled(record)
  return sub(record, 1, LEASE_CANCEL - 1) .. CANCEL_REQUESTED .. sub(record, LEASE_CANCEL + 1)
end

-- Return the lease of a job whose failures and losses are 0 from now on.
local function reset_lease_counts(record)
  return sub(record, 1, LEASE_CANCEL) .. NO_COUNTS .. sub(record, LEASE_CANCEL + #NO_COUNTS + 1)
end

local function get_token(lease)
  return lease.fence4 .. lease.nonce
end

local function read_attempt_state(record)
  local counts, fence4, started8, due8, settled = unpack_struct('>c6c4c8c8c20', record)
  return { counts = counts, fence4 = fence4, started8 = started8, due8 = due8, settled = settled }
end

-- Return the attempt state of a job. `attempts` is a lease, an attempt state or the end of a finished job.
local function make_attempt_state(attempts, due8)
  return attempts.counts .. attempts.fence4 .. attempts.started8 .. due8 .. attempts.settled
end

-- `counts` is failures 4 | lost 2.
local function has_failures(counts)
  return sub(counts, 1, 4) ~= NO_FAILURES
end

-- Return the code of a job and, if it is finished, its end. `lease` and `state` are those of an unfinished job that was leased.
local function get_state_code(body, lease, state)
  if has_flag(body, FLAG_FINISHED) then
    local job_end = read_job_end(body)
    return job_end.code, job_end
  end
  if lease then
    return LEASED
  end
  if is_suspended(body) then
    return SUSPENDED
  end
  local attempts = state and read_attempt_state(state)
  if attempts and has_failures(attempts.counts) then
    return RETRYING
  end
  local due8 = attempts and attempts.due8 or get_due(body)
  return decode_time(due8, 1) > now and SCHEDULED or PENDING
end

-- --- members of sorted sets ---

-- Return lane4, rank, due8 and field of a member of `ready`.
local function read_ready(member)
  return unpack_struct('>c4c1c8c8', member)
end

-- Return due8, field, lane4, rank and code of a member of `scheduled`, and its tenant, or nil.
local function read_scheduled(member)
  local due8, field, lane4, rank, code = unpack_struct('>c8c8c4c1c1', member)
  return due8, field, lane4, rank, code, #member > SCHEDULED_END and sub(member, SCHEDULED_END + 2) or nil
end

-- Return due time and seq of a place as numbers.
local function read_place(place)
  return decode_time(place, 1), (unpack_struct('>I8', place, 9))
end

local function is_earlier(place, other)
  local due, seq = read_place(place)
  local other_due, other_seq = read_place(other)
  return due < other_due or due == other_due and seq < other_seq
end

-- Return whether a member of `ready` comes before another one of its lane.
local function is_member_before(one, other)
  local rank, other_rank = byte(one, READY_RANK), byte(other, READY_RANK)
  if rank ~= other_rank then
    return rank < other_rank
  end
  return is_earlier(sub(one, READY_DUE, READY_END), sub(other, READY_DUE, READY_END))
end

-- --- history ---

local function make_history_entry(json)
  return now8 .. pack_struct('>I4', #json) .. json
end
