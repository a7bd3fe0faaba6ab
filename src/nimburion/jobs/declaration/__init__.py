"""Declarations of jobs: classes and functions, their signatures, and the handlers of a process."""
