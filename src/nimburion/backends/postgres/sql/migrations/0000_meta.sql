-- The format of the tables and the identity of the backend, in one row.
-- This script runs in the transaction that also writes the format number.

CREATE TABLE {schema}.meta (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    format int4 NOT NULL,               -- the number of the newest migration
    oldest int4 NOT NULL,               -- the oldest format whose nimburion version still works here
    functions text NOT NULL,            -- a digest of the texts of all functions
    identity text NOT NULL              -- random; distinguishes this backend from others
);
INSERT INTO {schema}.meta (format, oldest, functions, identity)
VALUES (0, 0, '', replace(CAST(gen_random_uuid() AS text), '-', ''));
