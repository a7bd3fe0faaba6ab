-- Count what an exchange handed out against the limits.
-- Inputs: the session, its exchange
-- Result: none
-- Locks: gates, which the exchange holds already
-- Atomic: one update a gate, by the number of places
CREATE OR REPLACE FUNCTION nb.fill_gates_1(p_session int4, p_number int8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE nb.gate g SET held = g.held + t.places
    FROM (
        SELECT a.name, count(*) AS places FROM nb.lease l JOIN nb.lane a ON a.id = l.lane
        WHERE l.session = p_session AND l.number = p_number GROUP BY a.name
    ) t
    WHERE g.name = t.name;
END $$;
