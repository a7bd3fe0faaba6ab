-- The lane where jobs of another lane stand that come back to an old place.
-- Inputs: the number of that lane
-- Result: the number of its late one, made when it is new
-- Locks: a lane that another transaction is making, until that ends
-- Atomic: a lane is never changed or taken away, so to find one is enough
CREATE OR REPLACE FUNCTION nb.late_lane_1(p_lane int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    late_id int4;
BEGIN
    LOOP
        SELECT b.id INTO late_id FROM nb.lane a JOIN nb.lane b
            ON b.queue = a.queue AND b.name = a.name AND b.rank = a.rank AND b.late
        WHERE a.id = p_lane;
        EXIT WHEN FOUND;
        INSERT INTO nb.lane (queue, name, rank, late, home)
        SELECT queue, name, rank, true, id FROM nb.lane WHERE id = p_lane
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN late_id;
END $$;
