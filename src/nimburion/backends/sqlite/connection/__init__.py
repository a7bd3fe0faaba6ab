"""The SQLite file: its path, connections, format and the threads that own them."""
