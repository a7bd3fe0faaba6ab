-- Give places under limits back.
-- Inputs: the lanes of leases that ended, one entry a lease
-- Result: the lanes whose names have a limit
-- Locks: gates, in the order of their names
-- Atomic: one update a gate, by the number of places
CREATE OR REPLACE FUNCTION nb.open_gate_1(p_lanes int4[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    rung int4[];
BEGIN
    WITH freed AS (
        SELECT a.name, count(*) AS places, array_agg(DISTINCT a.id) AS lanes
        FROM unnest(p_lanes) u JOIN nb.lane a ON a.id = u GROUP BY a.name
    ), opened AS (
        UPDATE nb.gate g SET held = g.held - f.places FROM freed f WHERE g.name = f.name
        RETURNING f.lanes
    )
    SELECT array_agg(l) INTO rung FROM opened, unnest(lanes) l;
    RETURN rung;
END $$;
