"""The contract of a backend as a test suite: what passes it is a backend.

Subclass `BackendContract`, say in one method how to open an empty backend, and run pytest.
"""

from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from nimburion.testing.contract.suite import BackendContract

__all__ = ["BackendContract", "Harness", "HandDrivenWorker"]
