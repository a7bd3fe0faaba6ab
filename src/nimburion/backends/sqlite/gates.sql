-- Every limit.
-- Inputs: none
-- Result: JSON: [[name, bound, held], …]
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(json_array(name, bound, held)) FROM gate
