-- Cancel a waiting job, or ask the worker of one that runs.
-- Inputs: the time or NULL; the id
-- Result: cancelled, requested, finished or missing; and the queue to ring, NULL for none
-- Locks: the job's place; its unique key
-- Atomic: each try is one step; a job slips through only by moving, so that the loop ends
CREATE OR REPLACE FUNCTION nb.cancel_1(p_now int8, p_id bytea, OUT answer text, OUT rung text)
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    body record;
    so_far nb.past;
    lane int4;
BEGIN
    LOOP
        SELECT j.seq, j.lane, j.due INTO body FROM nb.job j WHERE j.id = p_id;
        IF NOT FOUND THEN
            answer := CASE WHEN nb.known_1(p_id, -9223372036854775808, true) IS NULL THEN 'missing'
                ELSE 'finished' END;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM nb.dead d WHERE d.seq = body.seq) THEN
            answer := 'finished';
            RETURN;
        END IF;
        SELECT * INTO so_far FROM nb.past p WHERE p.seq = body.seq;
        IF NOT FOUND THEN
            so_far := ROW(body.seq, body.due, NULL, 0, 0, 0, 0, NULL);
        END IF;
        IF nb.displace_1(body.lane, so_far.due, body.seq) THEN
            answer := 'cancelled';
            lane := nb.finish_1(now, so_far, 3::int2, NULL, NULL);
            SELECT a.queue INTO rung FROM nb.lane a WHERE a.id = lane;
            RETURN;
        END IF;
        UPDATE nb.lease l SET cancel = true
        WHERE l.session = ANY (ARRAY(SELECT s.n FROM nb.session s WHERE NOT s.over)) AND l.seq = body.seq;
        IF FOUND THEN
            answer := 'requested';
            RETURN;
        END IF;
    END LOOP;
END $$;
