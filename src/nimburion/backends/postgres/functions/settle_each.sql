-- Apply settlements one after the other.
-- Inputs: as `settle_1`, each an array but for the letters, which are one text (NULL: all completed)
-- Result: a letter for each: done, already, stale; the lanes whose leases ended; the lanes to ring
-- Locks: the jobs' own rows; their unique keys, one after the other
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.settle_each_1(
    p_now int8, p_session int4, p_kinds text, p_seqs int8[], p_ids bytea[], p_fences int4[],
    p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[], p_fractions float8[],
    OUT letters text, OUT ended int4[], OUT rung int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    g record;
    one record;
    letter_list text[] := '{}';
BEGIN
    FOR g IN
        SELECT * FROM unnest(string_to_array(coalesce(p_kinds, repeat('c', cardinality(p_seqs))), NULL), p_seqs, p_ids, p_fences, p_nonces, p_delays,
            p_texts, p_bodies, p_fractions)
            AS u (kind, seq, id, fence, nonce, delay, said, body, fraction)
    LOOP
        SELECT * INTO one FROM nb.settle_1(p_now, p_session, g.kind, g.seq, g.id, g.fence, g.nonce,
            g.delay, g.said, g.body, g.fraction);
        letter_list := letter_list || one.letter;
        ended := CASE WHEN one.ended IS NULL THEN ended ELSE ended || one.ended END;
        rung := CASE WHEN one.rung IS NULL THEN rung ELSE rung || one.rung END;
    END LOOP;
    letters := array_to_string(letter_list, '');
END $$;
