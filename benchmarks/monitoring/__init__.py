"""What Prometheus says of a fleet that uses all features, beside a log kept outside."""
