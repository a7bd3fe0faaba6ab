"""`python3 dev.py bench redis`: ourselves beside nine other job systems on one Redis."""
