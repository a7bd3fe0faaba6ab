"""`python3 dev.py bench readings`: how long the readings for operators take with many jobs kept."""
