"""The memory store: for tests, and the written reference of the contract.

The clearest version of every rule; other stores are compared with it. It lives and dies with its
process.
"""

from nimburion.backends.memory.backend import MemoryBackend

__all__ = ["MemoryBackend"]
