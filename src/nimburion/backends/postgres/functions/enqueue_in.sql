-- Store new jobs inside a caller's own transaction, whatever driver it is on: texts, bytes and numbers.
-- Inputs: the time or NULL; the identity of the backend that is meant; the channel of its rings; as a
--   JSON array, the arguments of `enqueue_1` behind the time, ids and digests as hexadecimal digits and
--   in the place of the payloads where each begins (from 1) and how long it is; the payloads end to end
-- Result: as `enqueue_1`, the holders as a JSON array; the letter ! alone: this is another backend; ? alone:
--   a lane is new, nothing was done: to be made by `new_lanes_1` in a transaction of its own, or others
--   who enqueue in it would wait for the end of this one. Not where this one could not see it then
-- Locks: as `enqueue_1`, until the caller's transaction ends
-- Atomic: of the caller's transaction; a refused call has written nothing
CREATE OR REPLACE FUNCTION nb.enqueue_in_1(
    p_now int8, p_identity text, p_channel text, p_fields text, p_payloads bytea,
    OUT letters text, OUT holders text
) LANGUAGE plpgsql AS $$
DECLARE
    f json := p_fields;
    found record;
BEGIN
    IF NOT EXISTS (SELECT FROM nb.meta WHERE identity = p_identity) THEN
        letters := '!';
        RETURN;
    END IF;
    IF current_setting('transaction_isolation') = 'read committed' AND EXISTS (
        SELECT FROM unnest(nb.texts_1(f -> 0), nb.texts_1(f -> 1), CAST(nb.texts_1(f -> 2) AS int2[]))
            AS w (queue, name, rank), generate_series(0, CASE WHEN f ->> 8 IS NULL THEN 0 ELSE 1 END) n
        WHERE NOT EXISTS (
            SELECT FROM nb.lane l WHERE l.queue = w.queue AND l.name = w.name AND l.rank = w.rank
                AND l.late = (n = 1)
        )
    ) THEN
        letters := '?';
        RETURN;
    END IF;
    SELECT e.letters, e.holders INTO found FROM nb.enqueue_1(
        p_now, nb.texts_1(f -> 0), nb.texts_1(f -> 1), CAST(nb.texts_1(f -> 2) AS int2[]),
        CAST(nb.texts_1(f -> 3) AS int4[]), nb.bytes_1(f -> 4), nb.bytes_1(f -> 5),
        ARRAY(
            SELECT substr(p_payloads, CAST(p ->> 0 AS int4), CAST(p ->> 1 AS int4))
            FROM json_array_elements(f -> 6) p
        ),
        nb.texts_1(f -> 7), CAST(nb.texts_1(f -> 8) AS int8[]), CAST(nb.texts_1(f -> 9) AS int8[]),
        nb.texts_1(f -> 10), CAST(nb.texts_1(f -> 11) AS int8[]), CAST(nb.texts_1(f -> 12) AS bool[]),
        CAST(f ->> 13 AS int8)
    ) e;
    letters := found.letters;
    holders := to_json(ARRAY(SELECT encode(h, 'hex') FROM unnest(found.holders) h));
    IF letters IS NULL OR letters LIKE '%c%' THEN
        PERFORM nb.announce_1(p_channel, nb.texts_1(f -> 0));
    END IF;
END $$;
