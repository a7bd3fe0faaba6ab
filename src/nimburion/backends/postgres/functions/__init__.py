"""The operations of the backend as SQL functions, one per file, named with the format."""
