-- enqueue_one: stores one job without a unique key and without a large payload. It does what enqueue.lua does at half the cost.
-- Keys: counters lane_number job job_seq ready scheduled lane_counts
-- Arguments:
--   ARGV[3] rank 1 | mode 1 | value 8 (see enqueue_jobs.lua)
--   ARGV[4] the full lane name
--   ARGV[5] the body without its first 20 bytes
-- Reply: CREATED, EXISTS or CONFLICT; UNKNOWN_LANE if no job of this lane was stored before: enqueue.lua must store this one
-- Atomic: one script. A full server rejects it before it begins.
-- Cost: O(log n) for n waiting jobs.
local position, full_name, body = ARGV[3], ARGV[4], ARGV[5]
local number = redis.call('HGET', lane_number_key, full_name)
if not number then
  return UNKNOWN_LANE
end
local id = string.sub(body, NEW_JOB_ID, NEW_JOB_ID_LENGTH + string.byte(body, NEW_JOB_ID_LENGTH))
local field = struct.pack('>I8', redis.call('HINCRBY', counters_key, 'seq', 1))
if redis.call('HSETNX', job_seq_key, id, string.sub(field, 3)) == 0 then
  redis.call('HINCRBY', counters_key, 'seq', -1)
  local known = redis.call('HGET', job_key, '\0\0' .. redis.call('HGET', job_seq_key, id))
  local known_digest = string.sub(known, JOB_DIGEST, JOB_DIGEST_END)
  return known_digest == string.sub(body, NEW_JOB_DIGEST, NEW_JOB_DIGEST_END) and EXISTS or CONFLICT
end

local rank, mode, due8 = struct.unpack('>c1c1c8', position)
if mode == DUE_AFTER then
  local span = decode_time(due8, 1)
  due8 = span > 0 and encode_time(now + span) or now8
end

redis.call('HSET', job_key, field, number .. now8 .. due8 .. body)
if decode_time(due8, 1) <= now then
  redis.call('ZADD', ready_key, 0, number .. rank .. due8 .. field)
  redis.call('HINCRBY', lane_counts_key, number .. PENDING, 1)
else
  redis.call('ZADD', scheduled_key, 0, due8 .. field .. number .. rank .. SCHEDULED)
  redis.call('HINCRBY', lane_counts_key, number .. SCHEDULED, 1)
end

wake_idle(string.sub(full_name, 1, string.find(full_name, '\0', 1, true) - 1), 1)
return CREATED
