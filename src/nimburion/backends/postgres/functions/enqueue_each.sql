-- Store new jobs one by one: where ids may be known, or keys may be held.
-- Inputs: as `enqueue_1`, but for the time, which is given, and the lanes, which are found
-- Result: a letter for each job, and the ids that hold the keys
-- Locks: unique keys in the order of name and key, then what it inserts
-- Atomic: one transaction; the keys are locked before they are looked at. Who meets a job that
--   another transaction has just ended fails as a serialization failure, and is to repeat the call
CREATE OR REPLACE FUNCTION nb.enqueue_each_1(
    p_now int8, p_names text[], p_lane_ids int4[], p_lanes int4[], p_ids bytea[], p_digests bytea[],
    p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[], p_keys text[],
    p_spans int8[], p_lenient bool[], p_since int8,
    OUT letters text, OUT holders bytea[]
) LANGUAGE plpgsql AS $$
DECLARE
    g record;
    letter text;
    letter_list text[];
    rival bytea;
    known bytea;
    new_seq int8;
    seqs int8[];
    fresh_ids bytea[];
BEGIN
    PERFORM nb.lock_keys_1(p_now, p_names, p_lanes, p_ids, p_keys);
    FOR g IN
        SELECT u.*, p_names[u.lane] AS name, p_lane_ids[u.lane] AS lane_id
        FROM unnest(p_lanes, p_ids, p_digests, p_options, p_payloads, p_ats, p_afters, p_keys, p_spans,
                p_lenient)
            AS u (lane, id, digest, options, payload, at, after, key, span, lenient)
    LOOP
        letter := NULL;
        rival := NULL;
        known := nb.known_1(g.id, p_since);
        IF known IS NOT NULL THEN
            letter := CASE WHEN known = g.digest THEN 'e' ELSE 'x' END;
        ELSIF g.key IS NOT NULL THEN
            SELECT u.id INTO rival FROM nb.unique_key u
            WHERE u.name = g.name AND u.key = g.key AND u.seq <> 0;
            IF FOUND THEN
                letter := CASE WHEN g.lenient THEN 'e' ELSE 't' END;
            END IF;
        END IF;
        IF letter IS NULL THEN
            letter := 'c';
            new_seq := nb.store_1(p_now, g.lane_id, g.id, g.digest, g.payload, g.options,
                coalesce(g.at, p_now + coalesce(g.after, 0)), g.key);
            seqs := seqs || new_seq;
            fresh_ids := fresh_ids || g.id;
            UPDATE nb.unique_key SET seq = new_seq, id = g.id, until = p_now + g.span
            WHERE name = g.name AND key = g.key;
        END IF;
        letter_list := letter_list || letter;
        holders := holders || rival;
    END LOOP;
    IF EXISTS (SELECT FROM nb.done d WHERE d.id = ANY (fresh_ids) AND nb.known_1(d.id, p_since, true) IS NOT NULL)
    THEN
        RAISE EXCEPTION 'a job of this id ended meanwhile; repeat the call' USING ERRCODE = '40001';
    END IF;
    IF letter_list && ARRAY['x', 't'] THEN
        PERFORM nb.unstore_1(seqs);
        SELECT array_agg(CASE WHEN l IN ('x', 't') THEN l ELSE 'r' END ORDER BY place),
            array_agg(CASE WHEN l IN ('x', 't') THEN holder END ORDER BY place)
        INTO letter_list, holders
        FROM unnest(letter_list, holders) WITH ORDINALITY AS a (l, holder, place);
    END IF;
    DELETE FROM nb.unique_key WHERE seq = 0
        AND (name, key) IN (SELECT p_names[u.lane], u.key FROM unnest(p_lanes, p_keys) AS u (lane, key));
    letters := array_to_string(letter_list, '');
END $$;
