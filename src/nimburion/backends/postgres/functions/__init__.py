"""The operations of the store as functions of the server, one a file, named with the format."""
