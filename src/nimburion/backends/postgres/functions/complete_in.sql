-- Complete a job as the last thing in the transaction of its handler.
-- Inputs: the time or NULL; the identity of the backend that is meant; the channel of its rings; the
--   session's id; seq, id, fence and nonce of the lease; the result or NULL
-- Result: done, already, stale as letters; l: the session is not alive; !: this is another backend
-- Locks: the tables `gate` and `paused` in ROW SHARE; the limit of the job's name; its unique key; the
--   job's own rows; until the caller's transaction ends
-- Atomic: of the caller's transaction; the lease is deleted by its whole token, so a job that is
--   another's by now is not touched
CREATE OR REPLACE FUNCTION nb.complete_in_1(
    p_now int8, p_identity text, p_channel text, p_session text, p_seq int8, p_id bytea, p_fence int4,
    p_nonce bytea, p_result bytea
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    me int4;
    settled record;
    rung int4[];
BEGIN
    IF NOT EXISTS (SELECT FROM nb.meta WHERE identity = p_identity) THEN
        RETURN '!';
    END IF;
    now := nb.clock_1(p_now);
    SELECT n INTO me FROM nb.session WHERE id = p_session AND dead_at IS NULL AND left_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'l';
    END IF;
    LOCK TABLE nb.gate, nb.paused IN ROW SHARE MODE;
    PERFORM FROM nb.gate g WHERE g.name = (
        SELECT a.name FROM nb.lease l JOIN nb.lane a ON a.id = l.lane
        WHERE l.session = me AND l.seq = p_seq
    ) FOR NO KEY UPDATE;
    SELECT * INTO settled FROM nb.settle_1(
        now, me, 'c', p_seq, p_id, p_fence, p_nonce, NULL, NULL, p_result, NULL);
    IF settled.letter = 'd' THEN
        rung := nb.open_gate_1(ARRAY[settled.ended]) || settled.rung;
        PERFORM nb.announce_1(p_channel, ARRAY(SELECT queue FROM nb.lane WHERE id = ANY (rung)));
    END IF;
    RETURN settled.letter;
END $$;
