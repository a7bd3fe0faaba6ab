"""The contract of a backend as a test suite: a backend is correct if it passes.

Subclass `BackendContract`, implement the method that opens an empty backend, and run pytest.
"""

from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from nimburion.testing.contract.suite import BackendContract

__all__ = ["BackendContract", "Harness", "HandDrivenWorker"]
