"""Flows as graphs of at most `MAX_BOXES` boxes, and their pictures."""
