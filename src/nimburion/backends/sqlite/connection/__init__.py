"""The SQLite file: its path, format, connections, and the threads that own the connections."""
