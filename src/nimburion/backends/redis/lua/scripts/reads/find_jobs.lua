-- find_jobs: finds jobs by id.
-- Keys: job_seq
-- Arguments: ARGV[3...] up to 500 ids
-- Reply: the field (seq 8) of each job, nil for an unknown id
-- Atomic: reads only.
-- Cost: O(1) per id.
return find_fields(ARGV, 3)
