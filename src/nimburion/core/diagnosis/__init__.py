"""What is wrong, and why: health checks, causes, groups of failures, unserved jobs."""
