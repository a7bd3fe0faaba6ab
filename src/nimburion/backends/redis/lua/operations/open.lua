-- Open: see that this user may do all that scripts do; then the format of the namespace, a new one gets ours.
-- Keys: meta n ready bell ring0 ring1 ring2 ring3
-- Inputs: ARGV[3] our format
-- Result: the format that it has
-- Atomic: one script. It leaves no trace but the format and a counter at 0; and it rings everybody, which is only a hint.
--
-- Whoever lacks a right would stop a script in its middle, and the server takes nothing back: a job could be known and
-- stand in no line. So each command is called here once, in a form that changes nothing.
redis.call('HDEL', n_key, '')
redis.call('HSET', n_key, 'seq', redis.call('HINCRBY', n_key, 'seq', 0))
for _, command in ipairs({ 'HGETALL', 'HKEYS', 'HLEN' }) do
  redis.call(command, n_key)
end
for _, command in ipairs({ 'HGET', 'HMGET', 'HEXISTS' }) do
  redis.call(command, n_key, 'seq')
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
redis.call('XREAD', 'COUNT', 1, 'STREAMS', ring0_key, '0-0')
redis.call('XREVRANGE', ring0_key, '+', '-', 'COUNT', 1)
redis.call('DEL', bell_key)
redis.call('PUBLISH', bell_key, '*')
for _, stream in ipairs({ ring0_key, ring1_key, ring2_key, ring3_key }) do
  redis.call('XADD', stream, 'MAXLEN', 1, '*', '', '')
end

redis.call('HSETNX', meta_key, 'format', ARGV[3])
return tonumber(redis.call('HGET', meta_key, 'format'))
