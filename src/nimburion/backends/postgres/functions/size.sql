-- How many bytes a job counts when it is handed out (`ReserveRequest.max_bytes`; 256: DELIVERY_OVERHEAD).
-- Inputs: its payload and its options
-- Result: the bytes
-- Locks: none
-- Atomic: reads nothing, also not what lies apart from the row
CREATE OR REPLACE FUNCTION nb.size_1(p_payload bytea, p_options text) RETURNS int8
LANGUAGE sql IMMUTABLE AS $$
    SELECT CAST(256 + octet_length(p_payload) + coalesce(octet_length(p_options), 0) AS int8)
$$;
