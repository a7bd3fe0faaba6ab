"""nimburion: background jobs for Python, on four stores with one contract."""

__version__ = "0.1.0"
