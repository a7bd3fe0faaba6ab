-- Take a deleted record of history out of what was counted.
-- Inputs: when it ended, its lane and state
-- Result: none
-- Locks: the row of the count. The caller shares the turn of `tally_1` since before it deleted, so
--   that no record is counted while it is deleted
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.untally_1(p_finished int8, p_lane int4, p_state int2) RETURNS void
LANGUAGE sql AS $$
    UPDATE nb.tally SET number = number - 1
    WHERE upto > p_finished AND since <= p_finished AND lane = p_lane AND state = p_state
$$;
