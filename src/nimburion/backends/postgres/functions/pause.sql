-- Hand out nothing more of a queue, or do so again.
-- Inputs: the queue; whether it is to be paused
-- Result: none
-- Locks: the table `paused` in EXCLUSIVE: exchanges hold it in ROW SHARE while they read it, so that
--   none hands out anything of the queue any more when this returns
-- Atomic: one statement behind the lock
CREATE OR REPLACE FUNCTION nb.pause_1(p_queue text, p_paused bool) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE nb.paused IN EXCLUSIVE MODE;
    IF p_paused THEN
        INSERT INTO nb.paused (queue) VALUES (p_queue) ON CONFLICT DO NOTHING;
    ELSE
        DELETE FROM nb.paused WHERE queue = p_queue;
    END IF;
END $$;
