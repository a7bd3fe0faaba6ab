-- A lease of this session.
-- Inputs: ?1 session n, ?2 seq
-- Result: session, seq, lane, fence, nonce, at, cancel, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT session, seq, lane, fence, nonce, at, cancel FROM lease WHERE session = ?1 AND seq = ?2
