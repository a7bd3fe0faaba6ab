-- Ring queues when the caller's own transaction commits, and not at all when it does not.
-- Inputs: the channel; the queues
-- Result: none
-- Locks: the one of all notifying commits of a database, at the commit
-- Atomic: the server sends it with the commit. A teller without a name rings everybody
CREATE OR REPLACE FUNCTION nb.announce_1(p_channel text, p_queues text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    said text := E'\n' || array_to_string(ARRAY(SELECT DISTINCT q FROM unnest(p_queues) q ORDER BY q), E'\n');
BEGIN
    IF cardinality(p_queues) > 0 THEN
        PERFORM pg_notify(p_channel, CASE WHEN octet_length(said) > 7000 THEN E'\n*' ELSE said END);
    END IF;
END $$;
