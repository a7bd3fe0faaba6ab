-- Store one new job in its place.
-- Inputs: the time, its lane, id, digest, payload, options, due time and unique key
-- Result: its seq
-- Locks: what it inserts
-- Atomic: of the caller's transaction
CREATE OR REPLACE FUNCTION nb.store_1(
    p_now int8, p_lane int4, p_id bytea, p_digest bytea, p_payload bytea, p_options text, p_due int8,
    p_key text
) RETURNS int8
LANGUAGE plpgsql AS $$
DECLARE
    new_seq int8;
BEGIN
    INSERT INTO nb.job (due, created, lane, id, digest, unique_key, options, payload)
    VALUES (p_due, p_now, p_lane, p_id, p_digest, p_key, p_options, p_payload)
    ON CONFLICT (id) DO NOTHING
    RETURNING seq INTO new_seq;
    IF new_seq IS NULL THEN
        RAISE EXCEPTION 'a job of this id was stored meanwhile; repeat the call' USING ERRCODE = '40001';
    END IF;
    PERFORM nb.stand_1(p_now, new_seq, p_due, p_lane, 0::int2);
    RETURN new_seq;
END $$;
