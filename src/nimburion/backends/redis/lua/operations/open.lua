-- Open: see that this user may do all that scripts do; then the format of the namespace, a new one gets ours.
-- Keys: meta counters ready notify wakeup0 wakeup1 wakeup2 wakeup3
-- Inputs: ARGV[3] our format
-- Result: the format that it has
-- Atomic: one script. It leaves no trace but the format and a counter at 0; and it notifies everybody, which is only a hint.
--
-- Whoever lacks a right would stop a script in its middle, and the server takes nothing back: a job could be known and
-- stand in no line. So each command is called here once, in a form that changes nothing.
redis.call('HDEL', counters_key, '')
redis.call('HSET', counters_key, 'seq', redis.call('HINCRBY', counters_key, 'seq', 0))
for _, command in ipairs({ 'HGETALL', 'HKEYS', 'HLEN' }) do
  redis.call(command, counters_key)
end
for _, command in ipairs({ 'HGET', 'HMGET', 'HEXISTS' }) do
  redis.call(command, counters_key, 'seq')
end
redis.call('ZADD', ready_key, 'XX', 0, '')
for _, command in ipairs({ 'ZREM', 'ZSCORE', 'ZREVRANK' }) do
  redis.call(command, ready_key, '')
end
redis.call('ZCARD', ready_key)
for _, command in ipairs({ 'ZLEXCOUNT', 'ZRANGEBYLEX' }) do
  redis.call(command, ready_key, '-', '-')
end
for _, command in ipairs({ 'ZRANGE', 'ZREVRANGE', 'ZRANGEBYSCORE', 'ZREVRANGEBYSCORE' }) do
  redis.call(command, ready_key, 1, 0)
end
redis.call('TIME')
redis.call('XREAD', 'COUNT', 1, 'STREAMS', wakeup0_key, '0-0')
redis.call('XREVRANGE', wakeup0_key, '+', '-', 'COUNT', 1)
redis.call('DEL', notify_key)
redis.call('PUBLISH', notify_key, '*')
for _, stream in ipairs({ wakeup0_key, wakeup1_key, wakeup2_key, wakeup3_key }) do
  redis.call('XADD', stream, 'MAXLEN', 1, '*', '', '')
end

redis.call('HSETNX', meta_key, 'format', ARGV[3])
return tonumber(redis.call('HGET', meta_key, 'format'))
