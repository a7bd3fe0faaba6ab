-- Let a session live on.
-- Inputs: ?1 session n, ?2 expires, ?3 boot id
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE session SET expires = ?2, boot = ?3 WHERE n = ?1
