-- flush: writes a constant, so that a WAITAOF after it in the same request waits for all earlier writes.
-- Keys: meta
-- Atomic: one command.
-- Cost: O(1).
--
-- WAITAOF waits for the last write of its own connection. An enqueue that is repeated over a new connection, and finds its job
-- already stored, writes nothing there.
redis.call('HSET', meta_key, 'flushed', '1')
