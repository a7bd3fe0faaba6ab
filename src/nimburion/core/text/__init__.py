"""Work on texts: escape, shorten, redact and fingerprint them, suggest words, parse sizes."""
