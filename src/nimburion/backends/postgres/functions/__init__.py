"""The operations of the backend as functions of the server, one a file, named with the format."""
