-- Which of what was asked for still holds jobs that may be handed out.
-- Inputs: of lanes, side by side, which of those asked for they belong to, and their first due times;
--   whether there are limits; the names asked for
-- Result: places among those asked for, rising; NULL for none
-- Locks: none; reads a snapshot
-- Atomic: one look; the caller holds the limits
CREATE OR REPLACE FUNCTION nb.waiting_1(p_groups int4[], p_heads int8[], p_limited bool, p_names text[]) RETURNS int4[]
LANGUAGE plpgsql AS $$
BEGIN
    IF array_remove(p_heads, NULL) = '{}' THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(
        SELECT DISTINCT w.grp FROM unnest(p_groups, p_heads) AS w (grp, due)
        WHERE w.due IS NOT NULL AND NOT (p_limited AND EXISTS (
            SELECT FROM nb.gate g WHERE g.name = p_names[w.grp] AND g.bound <= g.held
        ))
        ORDER BY w.grp
    );
END $$;
