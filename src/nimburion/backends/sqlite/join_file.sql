-- The file that a caller's connection has open as its main database.
-- Inputs: none
-- Result: its absolute path; empty for a database in memory
-- Locks: none
-- Atomic: one statement; the answer never changes while the connection is open
SELECT file FROM pragma_database_list WHERE name = 'main'
