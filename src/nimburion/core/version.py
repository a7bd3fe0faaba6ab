"""The version of nimburion."""

__version__ = "0.1.0"
