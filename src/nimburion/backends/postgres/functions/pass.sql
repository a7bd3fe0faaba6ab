-- Forget what ended before a moment, oldest first, by moving a horizon; whole days that lie behind it
-- are dropped later.
-- Inputs: `completed` or `result`; the moment (NULL: nothing); at most so many
-- Result: how many
-- Locks: the row of the horizon
-- Atomic: one transaction; readers look beyond the horizon only. It goes forward in growing steps, as
--   history has no index that is in this order
CREATE OR REPLACE FUNCTION nb.pass_1(p_what text, p_before int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    one record;
    edge int8;
    step int8 := 10000;
    room int4 := p_limit;
BEGIN
    SELECT * INTO h FROM nb.horizon WHERE what = p_what FOR UPDATE;
    IF p_before IS NULL OR p_limit <= 0 OR (p_before, 0) <= (h.finished, h.seq) THEN
        RETURN 0;
    END IF;
    IF h.finished < 0 THEN
        h.finished := coalesce(CASE p_what
            WHEN 'completed' THEN (SELECT min(d.finished) FROM nb.done d WHERE d.finished < p_before)
            ELSE (SELECT min(d.finished) FROM nb.result d WHERE d.finished < p_before) END, p_before);
        h.seq := 0;
    END IF;
    LOOP
        edge := LEAST(p_before, h.finished + step);
        SELECT * INTO one FROM nb.ended_1(p_what, h.finished, h.seq, edge, room);
        room := room - one.number;
        h.finished := CASE WHEN room > 0 THEN edge ELSE one.finished END;
        h.seq := CASE WHEN room > 0 THEN 0 ELSE one.seq END;
        EXIT WHEN room = 0 OR edge >= p_before;
        step := 2 * step;
    END LOOP;
    UPDATE nb.horizon SET finished = h.finished, seq = h.seq WHERE what = p_what;
    RETURN p_limit - room;
END $$;
