-- The elements of a JSON array of hexadecimal digits as bytes.
-- Inputs: the array
-- Result: the bytes, in order
-- Locks: none
-- Atomic: reads nothing
CREATE OR REPLACE FUNCTION nb.bytes_1(p_array json) RETURNS bytea[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY(SELECT decode(e, 'hex') FROM json_array_elements_text(p_array) e)
$$;
