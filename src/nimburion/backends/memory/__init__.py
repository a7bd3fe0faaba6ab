"""The memory backend: for tests, and the written reference of the contract.

The clearest version of every rule; other backends are compared with it. It lives and dies with its
process.
"""

from nimburion.backends.memory.backend import MemoryBackend

__all__ = ["MemoryBackend"]
