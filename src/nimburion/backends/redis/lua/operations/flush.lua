-- Flush: write something, so that WAITAOF behind it in the same trip waits for all that was written before.
-- Keys: meta
--
-- WAITAOF waits for the last write of its own connection. An enqueue that is asked again over a new one, and finds its
-- job stored already, has written nothing there.
redis.call('HSET', meta_key, 'flushed', '1')
