-- What a session holds, in the order it was handed out.
-- Inputs: ?1 session n
-- Result: session, seq, lane, fence, nonce, at, cancel
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT session, seq, lane, fence, nonce, at, cancel FROM lease
WHERE session = ?1 ORDER BY number, place
