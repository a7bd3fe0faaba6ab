"""Django: jobs in a Django project, with its settings, its command line and its transactions.

```python
INSTALLED_APPS = [..., "nimburion.integrations.django"]
```

```python
# shop/jobs.py
from nimburion.integrations.django import processor


@processor.job(queue="mail", max_retries=5)
def send_receipt(order: int) -> None: ...
```

```python
# shop/views.py
with transaction.atomic():
    order = Order.objects.create(...)
    send_receipt.enqueue_sync(order.pk)
```

`manage.py nimburion worker` runs the jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion.integrations.django.django_processor import DjangoProcessor

    processor: DjangoProcessor
    """The processor of the project; see `get_processor`."""

__all__ = ["get_processor", "load_processor", "processor"]


def get_processor() -> DjangoProcessor:
    """Return the processor of the project, made from the setting `NIMBURION`.

    It is there as soon as Django has read `INSTALLED_APPS`: in `models.py`, `jobs.py` and later.
    Raises `ConfigurationError` if the app is not installed, and Django's `AppRegistryNotReady`
    if it is asked for earlier, as in the settings.
    """
    from nimburion.integrations import explain_missing

    try:
        from django.apps import apps
    except ModuleNotFoundError as missing:
        raise explain_missing(missing, "django") from None

    from nimburion.core.errors import ConfigurationError
    from nimburion.integrations.django.apps import NimburionConfig

    for config in apps.get_app_configs():
        if isinstance(config, NimburionConfig):
            return config.processor
    raise ConfigurationError(
        "the app is not installed, so there is no processor: add "
        '"nimburion.integrations.django" to INSTALLED_APPS in the settings'
        + (', in place of "nimburion"' if apps.is_installed("nimburion") else "")
    )


def load_processor() -> DjangoProcessor:
    """Set up Django if needed, and return the processor of the project.

    For programs that are not started by `manage.py`: child processes, and `nimburion worker
    nimburion.integrations.django:load_processor`. The environment variable DJANGO_SETTINGS_MODULE
    names the settings.
    """
    from nimburion.integrations import explain_missing

    try:
        import django
        from django.apps import apps
    except ModuleNotFoundError as missing:
        raise explain_missing(missing, "django") from None

    if not apps.ready:
        django.setup()
    return get_processor()


def __getattr__(name: str) -> DjangoProcessor:
    if name == "processor":
        return get_processor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
