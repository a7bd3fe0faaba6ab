-- Every session that is not dead, oldest first.
-- Inputs: the time that sessions live by
-- Result: rows: id, what it says of itself, when it was opened, in how many microseconds it expires,
--   whether it left, how many leases it holds
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.sessions_1(p_mono int8) RETURNS TABLE (
    id text, info text, opened int8, life int8, gone bool, running int8
)
LANGUAGE sql STABLE AS $$
    SELECT s.id, s.info, s.opened, s.expires - p_mono, s.left_at IS NOT NULL,
        (SELECT count(*) FROM nb.lease l WHERE l.session = s.n)
    FROM nb.session s WHERE s.dead_at IS NULL ORDER BY s.n
$$;
