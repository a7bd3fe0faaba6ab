-- Give back the places of these jobs under their limits.
-- Inputs: ?1 session n, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE gate SET held = max(0, held - freed.many)
FROM (
    SELECT lane.name, count(*) AS many FROM json_each(?2) AS s
    CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4
    CROSS JOIN lane ON lane.id = l.lane
    GROUP BY lane.name
) AS freed
WHERE gate.name = freed.name
