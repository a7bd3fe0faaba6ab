"""`python3 dev.py bench sqlite`: ourselves beside Huey, each on a file of its own."""
