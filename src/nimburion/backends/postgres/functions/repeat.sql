-- Hand out again what an exchange handed out.
-- Inputs: the session, its exchange
-- Result: a row for each job; its kind is its place
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.repeat_1(p_session int4, p_number int8) RETURNS SETOF nb.reply
LANGUAGE sql STABLE AS $$
    SELECT l.place, l.seq, l.due, j.created, l.lane, l.fence, l.failures, l.lost, j.id, j.options, j.payload,
        NULL::int8, NULL::int4[], NULL::text[], NULL::text[], NULL::int2[], NULL::text[], NULL::int4[], NULL::int4[],
        NULL::int8[]
    FROM nb.lease l JOIN nb.job j ON j.seq = l.seq
    WHERE l.session = p_session AND l.number = p_number
$$;
