"""Cases of the operations of operators: replay, delete, pause, prune, audit."""
