"""Run jobs in the tests of a Django project.

```python
from nimburion.integrations.django.testing import run_jobs


class OrderTests(TransactionTestCase):
    def test_the_receipt_is_sent(self):
        self.client.post("/orders")
        self.assertEqual(run_jobs(), 1)
```
"""

from __future__ import annotations

import asyncio

from nimburion.integrations.django import get_processor
from nimburion.integrations.django.django_processor import DjangoProcessor


def run_jobs() -> int:
    """Run the jobs that are due, one after another, and return the number of attempts.

    Jobs see what is committed. If the jobs live in the database under test, use
    `TransactionTestCase`: inside the transaction of a `TestCase` they would wait for it.
    """
    return asyncio.run(_drain(get_processor()))


async def _drain(processor: DjangoProcessor) -> int:
    async with processor:
        return await processor.drain()
