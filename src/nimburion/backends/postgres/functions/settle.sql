-- Apply one settlement, if its whole token holds.
-- Inputs: the time; the session; the letter of what happened (completed, retried, failed, given back:
--   l, snoozed: s, x: cancelled, progressed); seq, id, fence and nonce of the lease; then, each NULL
--   where there is none: delay in microseconds, reason or message, result or error, fraction
-- Result: done, already or stale; the lane whose lease ended; the lane to ring, NULL for none
-- Locks: the job's own rows; its unique key
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so it settles once
CREATE OR REPLACE FUNCTION nb.settle_1(
    p_now int8, p_session int4, p_kind text, p_seq int8, p_id bytea, p_fence int4, p_nonce bytea,
    p_delay int8, p_text text, p_body bytea, p_fraction float8,
    OUT letter text, OUT ended int4, OUT rung int4
) LANGUAGE plpgsql AS $$
DECLARE
    held nb.lease;
    so_far nb.past;
BEGIN
    letter := 'd';
    IF p_kind = 'p' THEN
        UPDATE nb.lease SET noted = noted | 2
        WHERE session = p_session AND seq = p_seq AND fence = p_fence AND nonce = p_nonce;
        IF FOUND THEN
            INSERT INTO nb.progress (seq, fraction, message) VALUES (p_seq, p_fraction, p_text)
            ON CONFLICT (seq) DO UPDATE SET fraction = excluded.fraction, message = excluded.message;
            RETURN;
        END IF;
    ELSE
        DELETE FROM nb.lease
        WHERE session = p_session AND seq = p_seq AND fence = p_fence AND nonce = p_nonce
        RETURNING * INTO held;
    END IF;
    IF held.seq IS NULL THEN
        letter := nb.unmatched_1(p_seq, p_id, p_fence, p_nonce);
        RETURN;
    END IF;
    ended := held.lane;
    so_far := ROW(held.seq, held.due, held.at, held.fence, held.failures, held.lost, held.noted,
        int4send(held.fence) || held.nonce);
    IF p_kind IN ('r', 'f') THEN
        PERFORM nb.note_1(p_seq, p_now, p_body);
        so_far.failures := so_far.failures + 1;
        so_far.noted := so_far.noted | 1;
    END IF;
    IF p_kind = 'c' THEN
        rung := nb.finish_1(p_now, so_far, 1::int2, NULL, p_body);
    ELSIF p_kind = 'x' THEN
        rung := nb.finish_1(p_now, so_far, 3::int2, p_text, NULL);
    ELSIF p_kind = 'f' THEN
        rung := nb.bury_1(p_now, so_far, p_text);
    ELSE
        so_far.due := coalesce(p_now + p_delay, so_far.due);
        SELECT w.rung INTO rung FROM nb.wait_again_1(p_now, held, so_far) w;
    END IF;
END $$;
