-- Find: where jobs lie.
-- Keys: id
-- Inputs: ARGV[3...] ids, 500 at most
-- Result: a field or nil for each
-- Locks: none
-- Atomic: one script that writes nothing
return redis.call('HMGET', id_key, unpack(ARGV, 3))
