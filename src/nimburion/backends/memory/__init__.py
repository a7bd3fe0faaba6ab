"""The memory backend: for tests, and the reference implementation of the contract.

It states every rule in its clearest form; the other backends are compared with it. The data is
lost when the process ends.
"""

from nimburion.backends.memory.backend import MemoryBackend

__all__ = ["MemoryBackend"]
