-- The lanes of the jobs that an exchange handed out.
-- Inputs: the session, its exchange
-- Result: arrays side by side: their numbers, ranks, queues and names
-- Locks: none; reads a snapshot
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.lanes_of_1(
    p_session int4, p_number int8, OUT homes int4[], OUT ranks int2[], OUT queues text[],
    OUT names text[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(a.id), array_agg(a.rank), array_agg(a.queue), array_agg(a.name)
    INTO homes, ranks, queues, names
    FROM nb.lane a WHERE a.id = ANY (ARRAY(
        SELECT l.lane FROM nb.lease l WHERE l.session = p_session AND l.number = p_number
    ));
END $$;
