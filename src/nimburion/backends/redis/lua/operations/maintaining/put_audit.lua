-- put_audit: adds an audit record, or replaces the record with the same id. The oldest record beyond the maximum is deleted.
-- Keys: counters audit audit_number
-- Arguments: ARGV[3] id, [4] record (JSON), [5] maximum number of records
-- Reply: none
-- Atomic: one script.
-- Cost: O(1). The numbers of the kept records have no gaps, so the surplus is found without a scan.
local id, json, most = ARGV[3], ARGV[4], tonumber(ARGV[5])
local number, time8 = redis.call('HGET', audit_number_key, id), now8
if number then
  time8 = string.sub(redis.call('HGET', audit_key, number), 1, 8)
else
  number = redis.call('HINCRBY', counters_key, 'audit', 1)
  redis.call('HSET', audit_number_key, id, number)
  local surplus = redis.call('HGET', audit_key, number - most)
  if surplus then
    redis.call('HDEL', audit_number_key, cjson.decode(string.sub(surplus, 9)).id)
    redis.call('HDEL', audit_key, number - most)
  end
end
redis.call('HSET', audit_key, number, time8 .. json)
