-- What an exchange must know before it begins.
-- Inputs: ?1 session id
-- Result: n, number, results, left_at, dead_at, paused queues (JSON), gates (JSON: name, bound,
--   held), earliest due time still ahead, whether a unique key is held; no row: no such session
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    n, number, results, left_at, dead_at,
    (SELECT json_group_array(queue) FROM paused),
    (SELECT json_group_array(json_array(name, bound, held)) FROM gate),
    (SELECT min(due) FROM scheduled),
    EXISTS (SELECT 1 FROM unique_key WHERE until IS NULL)
FROM session WHERE id = ?1
