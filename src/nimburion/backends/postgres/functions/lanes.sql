-- The numbers of lanes; those that are new are made.
-- Inputs: queues, names and ranks, side by side
-- Result: their numbers, in that order
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away, so to find one is enough
CREATE OR REPLACE FUNCTION nb.lanes_1(p_queues text[], p_names text[], p_ranks int2[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    found_ids int4[];
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT array_agg(l.id ORDER BY w.place) INTO found_ids
        FROM unnest(p_queues, p_names, p_ranks) WITH ORDINALITY AS w (queue, name, rank, place)
        LEFT JOIN LATERAL (
            SELECT l.id FROM nb.lane l
            WHERE l.queue = w.queue AND l.name = w.name AND l.rank = w.rank AND NOT l.late OFFSET 0
        ) l ON true;
        EXIT WHEN array_position(found_ids, NULL) IS NULL;
        INSERT INTO nb.lane (queue, name, rank)
        SELECT DISTINCT * FROM unnest(p_queues, p_names, p_ranks) ORDER BY 1, 2, 3
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN found_ids;
END $$;
