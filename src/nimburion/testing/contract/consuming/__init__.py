"""Cases of the operations of workers: sessions, exchanges, leases, limits."""
