-- A new session.
-- Inputs: ?1 id, ?2 info (JSON), ?3 ttl, ?4 expires, ?5 boot id, ?6 now
-- Result: none; fails when the id was used
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO session (id, info, ttl, expires, boot, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
