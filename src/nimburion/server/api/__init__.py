"""The JSON API under `/api/v1`: each module holds the operations on one subject."""
