-- Who holds a unique key now.
-- Inputs: ?1 job name, ?2 key, ?3 now
-- Result: id, seq, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id, seq FROM unique_key
WHERE name = ?1 AND key = ?2 AND (until IS NULL OR until > ?3)
