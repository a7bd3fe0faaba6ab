-- Open: the format of the namespace; a new one gets ours.
-- Keys: meta
-- Inputs: ARGV[3] our format
-- Result: the format that it has
-- Locks: none
-- Atomic: one script
redis.call('HSETNX', meta_key, 'format', ARGV[3])
return tonumber(redis.call('HGET', meta_key, 'format'))
