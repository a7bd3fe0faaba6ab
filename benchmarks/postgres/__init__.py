"""`python3 dev.py bench postgres`: ourselves beside seven other job systems on one PostgreSQL."""
