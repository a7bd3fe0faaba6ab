"""The session of a worker in the backend, and the heartbeats that keep it alive."""
