-- What tells which format the tables have, and which backend this is: one row.
-- Runs in the transaction that also writes the format number.

CREATE TABLE {schema}.meta (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    format int4 NOT NULL,
    oldest int4 NOT NULL,               -- the oldest format whose nimburion can still work here
    functions text NOT NULL,            -- a digest of their texts
    identity text NOT NULL              -- random: tells this backend from others
);
INSERT INTO {schema}.meta (format, oldest, functions, identity)
VALUES (0, 0, '', replace(CAST(gen_random_uuid() AS text), '-', ''));
