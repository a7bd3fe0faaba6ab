-- The elements of a JSON array as texts.
-- Inputs: the array, or the JSON word null
-- Result: the texts, in order; NULL for no array
-- Locks: none
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION nb.texts_1(p_array json) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN json_typeof(p_array) = 'array' THEN ARRAY(SELECT json_array_elements_text(p_array)) END
$$;
