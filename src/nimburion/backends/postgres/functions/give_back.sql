-- Give back what an exchange handed out and a repeat of it has no room for.
-- Inputs: the time; the session, its exchange; the most bytes of deliveries
-- Result: the lanes of the jobs that wait again; NULL for none
-- Locks: limits of these jobs, one statement for all; then places
-- Atomic: of the caller's transaction. No loss is counted; a job that was asked to be cancelled ends
CREATE OR REPLACE FUNCTION nb.give_back_1(p_now int8, p_session int4, p_number int8, p_max_bytes int8) RETURNS int4[]
LANGUAGE plpgsql AS $$
DECLARE
    held nb.lease;
    ended int4[];
BEGIN
    FOR held IN
        DELETE FROM nb.lease l WHERE l.session = p_session AND l.seq = ANY (ARRAY(
            SELECT x.seq FROM (
                SELECT l.seq, row_number() OVER o AS n, sum(nb.size_1(j.payload, j.options)) OVER o AS bytes
                FROM nb.lease l JOIN nb.job j ON j.seq = l.seq
                WHERE l.session = p_session AND l.number = p_number
                WINDOW o AS (ORDER BY l.place, l.due, l.seq)
            ) x WHERE x.bytes > p_max_bytes AND x.n > 1
        )) RETURNING l.*
    LOOP
        PERFORM nb.wait_again_1(p_now, held, nb.end_lease_1(p_now, held, NULL));
        ended := ended || held.lane;
    END LOOP;
    IF ended IS NOT NULL THEN
        PERFORM nb.open_gate_1(ended);
    END IF;
    RETURN ended;
END $$;
