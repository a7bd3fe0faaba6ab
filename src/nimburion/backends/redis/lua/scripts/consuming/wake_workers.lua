-- wake_workers: wakes idle workers of a queue.
-- Keys: idle_worker
-- Arguments: ARGV[3] queue, [4] number of jobs, [5] '1' if another worker found no job after this wake-up, [6] the handle that asks,
--   which is not woken
-- Reply: none
-- Atomic: one script.
-- Cost: O(log n) for each worker that is woken, for n idle workers.
wake_idle(ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1', ARGV[6])
