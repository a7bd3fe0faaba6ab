-- Whole records.
-- Inputs: the time; the ids; whether payloads are wanted
-- Result: a row each, newest first, as `read_records.py` reads it
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.get_1(p_now int8, p_ids bytea[], p_payloads bool) RETURNS TABLE (
    seq int8, letter text, id bytea, queue text, name text, rank int2, payload bytea, failures int4,
    lost int4, due int8, created int8, started int8, finished int8, reason text, cancel bool,
    holder text, options text, history_at int8[], history bytea[], fraction float8, message text,
    result bytea
)
LANGUAGE sql STABLE AS $$
    SELECT r.seq, nb.letter_1(r.place, r.failures, r.due, p_now), r.id, a.queue, a.name, a.rank,
        CASE WHEN p_payloads THEN r.payload END, r.failures, r.lost, r.due, r.created, r.started,
        r.finished, r.reason, r.cancel, r.holder, r.options,
        coalesce(r.history_at, (SELECT array_agg(e.at ORDER BY e.n) FROM nb.attempt_error e WHERE e.seq = r.seq AND r.noted & 1 > 0)),
        coalesce(r.history, (SELECT array_agg(e.body ORDER BY e.n) FROM nb.attempt_error e WHERE e.seq = r.seq AND r.noted & 1 > 0)),
        coalesce(r.fraction, p.fraction), coalesce(r.message, p.message),
        (SELECT s.body FROM nb.result s, nb.horizon h WHERE r.place = 'c' AND s.seq = r.seq
            AND h.what = 'result' AND (s.finished, s.seq) > (h.finished, h.seq) LIMIT 1)
    FROM nb.record r JOIN nb.lane a ON a.id = r.lane
    LEFT JOIN nb.progress p ON p.seq = r.seq AND r.noted & 2 > 0
    WHERE r.id = ANY (p_ids)
    ORDER BY r.seq DESC
$$;
