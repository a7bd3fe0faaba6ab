"""Cases of the operations of producers: enqueue and cancel."""
