-- An answer of one word.
-- Inputs: its kind and its number
-- Result: a row of that kind
-- Locks: none
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION nb.word_1(p_kind int4, p_number int8) RETURNS nb.reply
LANGUAGE sql IMMUTABLE AS $$
    SELECT CAST(ROW(p_kind, p_number, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL) AS nb.reply)
$$;
