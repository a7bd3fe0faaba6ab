-- Lock all limits before leases end, and keep new ones from being made meanwhile.
-- Inputs: none
-- Result: whether there is any limit
-- Locks: the tables `gate` and `paused` in ROW SHARE; gates, in the order of their names
-- Atomic: held until the transaction ends
CREATE OR REPLACE FUNCTION nb.lock_gates_1() RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE nb.gate, nb.paused IN ROW SHARE MODE;
    PERFORM FROM nb.gate ORDER BY name FOR NO KEY UPDATE;
    RETURN FOUND;
END $$;
