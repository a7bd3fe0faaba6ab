"""The outbox: jobs that were stored in a transaction of another database than the backend's."""
