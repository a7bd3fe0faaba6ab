-- Find: where jobs lie.
-- Keys: job_seq
-- Inputs: ARGV[3...] ids, 500 at most
-- Result: a field or nil for each
return find_fields(ARGV, 3)
