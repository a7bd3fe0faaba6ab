-- enqueue_one: stores one job without a unique key and without a large payload. It does what enqueue.lua does at half the cost.
-- Keys: counters lane_number lane_name job job_seq ready scheduled lane_counts notify
-- Arguments: KEYS[#KEYS] the wake-up stream of the queue (after the keys above)
--   ARGV[3] rank 1 | mode 1 | value 8 (see enqueue_jobs.lua), [4] full lane name, [5] queue, [6] id, [7] body without its first
--   20 bytes
-- Reply: 'c' created, 'e' exists or 'x' conflict
-- Atomic: one script. A full server rejects it before it begins.
-- Cost: O(log n) for n waiting jobs.
local body, id, queue = ARGV[7], ARGV[6], ARGV[5]
local number = redis.call('HGET', lane_number_key, ARGV[4])
local field = struct.pack('>I8', redis.call('HINCRBY', counters_key, 'seq', 1))
if redis.call('HSETNX', job_seq_key, id, string.sub(field, 3)) == 0 then
  redis.call('HINCRBY', counters_key, 'seq', -1)
  local known = '\0\0' .. redis.call('HGET', job_seq_key, id)
  return string.sub(redis.call('HGET', job_key, known), 23, 38) == string.sub(body, 3, 18) and 'e' or 'x'
end

if not number then
  number = struct.pack('>I4', redis.call('HINCRBY', counters_key, 'lane', 1))
  redis.call('HSET', lane_number_key, ARGV[4], number)
  redis.call('HSET', lane_name_key, number, ARGV[4])
end

local position = ARGV[3]
local due8 = string.sub(position, 3)
if string.byte(position, 2) == 100 then -- d
  local span = decode_time(due8, 1)
  due8 = span > 0 and encode_time(now + span) or now8
end

redis.call('HSET', job_key, field, number .. now8 .. due8 .. body)
if decode_time(due8, 1) <= now then
  redis.call('ZADD', ready_key, 0, number .. string.sub(position, 1, 1) .. due8 .. field)
  redis.call('HINCRBY', lane_counts_key, number .. 'P', 1)
else
  redis.call('ZADD', scheduled_key, 0, due8 .. field .. number .. string.sub(position, 1, 1) .. 'S')
  redis.call('HINCRBY', lane_counts_key, number .. 'S', 1)
end

local waits = queue .. '\0'
local subscribers = redis.call('HMGET', notify_key, queue, waits)
if subscribers[1] then
  redis.call('HDEL', notify_key, queue)
  redis.call('PUBLISH', notify_key, queue)
end
if subscribers[2] then
  redis.call('HDEL', notify_key, waits)
  redis.call('XADD', KEYS[#KEYS], 'MAXLEN', 1, '*', '', '')
end
return 'c'
