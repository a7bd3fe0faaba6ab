-- open: checks that this user may run all commands of the scripts; writes the format of a new namespace.
-- Keys: meta counters ready notify idle_worker
-- Arguments: ARGV[3] format of this version
-- Reply: the format of the namespace
-- Atomic: one script. It leaves nothing but the format and a counter at 0.
-- Cost: O(1).
--
-- A missing permission would stop a script in the middle, and the server cannot roll back: a job could exist and be in no queue. So
-- this script calls each command once, in a form that changes nothing.
redis.call('HDEL', counters_key, '')
redis.call('HSET', counters_key, 'seq', redis.call('HINCRBY', counters_key, 'seq', 0))
for _, command in ipairs({ 'HGETALL', 'HKEYS', 'HLEN' }) do
  redis.call(command, counters_key)
end
redis.call('HSCAN', counters_key, '0', 'COUNT', 1)
for _, command in ipairs({ 'HGET', 'HMGET', 'HEXISTS' }) do
  redis.call(command, counters_key, 'seq')
end
redis.call('ZADD', ready_key, 'XX', 0, '')
for _, command in ipairs({ 'ZREM', 'ZSCORE' }) do
  redis.call(command, ready_key, '')
end
redis.call('ZCARD', ready_key)
redis.call('ZCOUNT', ready_key, 0, 0)
for _, command in ipairs({ 'ZLEXCOUNT', 'ZRANGEBYLEX' }) do
  redis.call(command, ready_key, '-', '-')
end
redis.call('ZREVRANGEBYLEX', ready_key, '-', '-')
for _, command in ipairs({ 'ZRANGE', 'ZRANGEBYSCORE' }) do
  redis.call(command, ready_key, 1, 0)
end
redis.call('ZREVRANGEBYSCORE', ready_key, 0, 1) -- the maximum comes first: (1, 0) would return all waiting jobs
redis.call('TIME')
local stream = idle_worker_key .. ':'
redis.call('XADD', stream, 'MAXLEN', 1, '*', '', '')
redis.call('XREAD', 'COUNT', 1, 'STREAMS', stream, '0-0')
redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
redis.call('EXPIRE', stream, -1) -- deletes it
redis.call('EXISTS', stream)
redis.call('PUBLISH', stream, '')
redis.call('PUBLISH', notify_key, '')

redis.call('HSETNX', meta_key, 'format', ARGV[3])
return tonumber(redis.call('HGET', meta_key, 'format'))
