-- get_record: reads a record.
-- Keys: record
-- Arguments: ARGV[3] kind, [4] id
-- Reply: the record; nil: there is none
-- Atomic: reads only.
-- Cost: O(1).
return redis.call('HGET', record_key, get_record_field(ARGV[3], ARGV[4]))
