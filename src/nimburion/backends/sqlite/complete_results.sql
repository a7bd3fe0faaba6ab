-- Keep what the handlers of completed jobs returned.
-- Inputs: ?1 JSON object: seq -> offset * 2^32 + length in ?2, ?2 the results end to end
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job SET result = substr(?2, (p.value >> 32) + 1, p.value & 4294967295)
FROM json_each(?1) AS p WHERE job.seq = CAST(p.key AS INTEGER)
