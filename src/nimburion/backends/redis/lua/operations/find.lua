-- Find: where jobs lie.
-- Keys: id
-- Inputs: ARGV[3...] ids, 500 at most
-- Result: a field or nil for each
return fields_of(ARGV, 3)
