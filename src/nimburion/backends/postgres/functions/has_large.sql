-- Whether payloads may be large: whether one of them ever lay apart from its row.
-- Inputs: none
-- Result: false when each lies in its row, in 2 KB at most
-- Locks: none
-- Atomic: a look at the size of a file, which grows before a row in it is there
CREATE OR REPLACE FUNCTION nb.has_large_1() RETURNS bool
LANGUAGE sql STABLE AS $$
    SELECT pg_relation_size(c.reltoastrelid) > 0 FROM pg_class c
    WHERE c.oid = CAST('nb.job' AS regclass)
$$;
