"""What jobs are: declarations, typed fields, payloads, policies and what handlers see."""
