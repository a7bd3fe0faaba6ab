-- Forget what ended before a moment, oldest first, by moving a horizon; whole days that lie behind it
-- are dropped later.
-- Inputs: `completed` or `result`; the moment (NULL: nothing); at most so many
-- Result: how many
-- Locks: the row of the horizon
-- Atomic: one transaction; readers look beyond the horizon only
CREATE OR REPLACE FUNCTION nb.pass_1(p_what text, p_before int8, p_limit int4) RETURNS int4
LANGUAGE plpgsql AS $$
DECLARE
    h record;
    passed int4;
    last record;
BEGIN
    SELECT * INTO h FROM nb.horizon WHERE what = p_what FOR UPDATE;
    IF p_before IS NULL OR p_limit <= 0 OR (p_before, 0) <= (h.finished, h.seq) THEN
        RETURN 0;
    END IF;
    IF p_what = 'completed' THEN
        SELECT count(*) INTO passed FROM (SELECT FROM nb.done d
            WHERE d.finished >= h.finished AND d.finished < p_before AND (d.finished, d.seq) > (h.finished, h.seq)
            LIMIT p_limit) d;
        SELECT d.finished, d.seq INTO last FROM nb.done d
        WHERE passed = p_limit AND d.finished >= h.finished AND d.finished < p_before
            AND (d.finished, d.seq) > (h.finished, h.seq)
        ORDER BY d.finished, d.seq OFFSET p_limit - 1 LIMIT 1;
    ELSE
        SELECT count(*) INTO passed FROM (SELECT FROM nb.result d
            WHERE d.finished >= h.finished AND d.finished < p_before AND (d.finished, d.seq) > (h.finished, h.seq)
            LIMIT p_limit) d;
        SELECT d.finished, d.seq INTO last FROM nb.result d
        WHERE passed = p_limit AND d.finished >= h.finished AND d.finished < p_before
            AND (d.finished, d.seq) > (h.finished, h.seq)
        ORDER BY d.finished, d.seq OFFSET p_limit - 1 LIMIT 1;
    END IF;
    UPDATE nb.horizon SET finished = coalesce(last.finished, p_before), seq = coalesce(last.seq, 0)
    WHERE what = p_what;
    RETURN passed;
END $$;
