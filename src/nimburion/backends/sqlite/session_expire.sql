-- End the sessions whose time is up: overdue, of another boot, or ahead of a clock that began
-- anew.
-- Inputs: ?1 now, ?2 seconds since boot, ?3 boot id
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE session SET dead_at = ?1
WHERE dead_at IS NULL AND (boot <> ?3 OR expires <= ?2 OR expires > ?2 + ttl + 1)
