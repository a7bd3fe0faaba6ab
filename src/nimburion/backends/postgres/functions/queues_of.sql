-- The queues of lanes.
-- Inputs: the numbers of lanes
-- Result: the names of their queues, each once
-- Locks: none; reads a snapshot
-- Atomic: one look
CREATE OR REPLACE FUNCTION nb.queues_of_1(p_lanes int4[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT l.queue FROM nb.lane l WHERE l.id = ANY (p_lanes));
END $$;
