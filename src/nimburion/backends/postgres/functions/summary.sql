-- What an exchange says besides the jobs it hands out.
-- Inputs: the time; the next due time; nonce and letters of the exchange; lanes to ring; whether jobs
--   were handed out, and lanes that they are of; the names whose limits are locked, NULL without any;
--   the names asked for; open lanes as `open_lines_1`
--   answers them; the oldest transaction that ran before the lines were read; the
--   time when this one had no number yet, or NULL
-- Result: a row of kind 0: seq is the time, due the next due time, id the nonce, options the letters;
--   once `since`, the first transaction that ran when the lines were read, is `created` at least, all
--   are over that took a time more than `fence` before that of this one; the lanes of the jobs handed
--   out (numbers, queues, names, ranks), queues to ring in front (number NULL); which of those asked
--   for still hold jobs; and the first due time of each open lane
-- Locks: none; reads snapshots
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.summary_1(
    p_now int8, p_next_due int8, p_nonce bytea, p_letters text, p_rung int4[], p_handed bool,
    p_homes int4[], p_locked text[], p_names text[], p_ids int4[], p_groups int4[], p_floors int8[],
    p_since int8, p_early int8
) RETURNS nb.reply
LANGUAGE plpgsql AS $$
DECLARE
    said nb.reply;
BEGIN
    said.kind := 0;
    said.seq := p_now;
    said.due := p_next_due;
    said.id := p_nonce;
    said.options := p_letters;
    said.since := p_since;
    SELECT array_agg(a.id), array_agg(a.queue), array_agg(a.name), array_agg(a.rank)
    INTO said.lanes, said.queues, said.names, said.ranks
    FROM (
        SELECT NULL::int4 AS id, r.queue, r.name, r.rank FROM nb.lane r WHERE r.id = ANY (p_rung)
        UNION ALL
        SELECT a.id, a.queue, a.name, a.rank FROM nb.lane a WHERE p_handed AND a.id = ANY (p_homes)
    ) a;
    IF p_ids IS NOT NULL THEN
        SELECT array_agg(h.id), array_agg(h.due) INTO said.heads_of, said.heads
        FROM (
            SELECT w.id, (
                SELECT r.due FROM nb.ready r WHERE r.lane = w.id AND r.due >= w.floor
                ORDER BY r.due, r.seq LIMIT 1
            ) AS due
            FROM unnest(p_ids, p_floors) AS w (id, floor)
        ) h;
        SELECT array_agg(DISTINCT w.grp ORDER BY w.grp) INTO said.waiting
        FROM unnest(p_groups, said.heads) AS w (grp, due)
        LEFT JOIN nb.gate g ON p_locked IS NOT NULL AND g.name = p_names[w.grp]
        WHERE w.due IS NOT NULL AND coalesce(g.bound - g.held, 1) > 0;
    END IF;
    said.created := CAST(CAST(pg_current_xact_id() AS text) AS int8) + 1;
    said.fence := CASE WHEN p_early < p_now THEN LEAST(p_now - p_early, 2000000000) ELSE 0 END;
    RETURN said;
END $$;
