"""Texts: escaped, shortened, redacted, fingerprinted, compared, and read as sizes."""
