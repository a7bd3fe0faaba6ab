-- The first due time of each lane.
-- Inputs: lanes and, side by side, due times before which nothing stands in them
-- Result: due times in that order; NULL where nothing stands
-- Locks: none; reads a snapshot
-- Atomic: one look at each
CREATE OR REPLACE FUNCTION nb.heads_1(p_ids int4[], p_floors int8[]) RETURNS int8[]
LANGUAGE plpgsql AS $$
DECLARE
    heads int8[] := '{}';
    head int8;
BEGIN
    FOR i IN 1..coalesce(cardinality(p_ids), 0) LOOP
        SELECT r.due INTO head FROM nb.ready r WHERE r.lane = p_ids[i] AND r.due >= p_floors[i]
        ORDER BY r.due, r.seq LIMIT 1;
        heads[i] := head;
    END LOOP;
    RETURN heads;
END $$;
