"""Settings become the schema of the configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from nimburion.config.schema import make_section
from nimburion.core.settings import Kind


class WholeNumber(msgspec.Struct):
    """A setting without an upper bound."""

    count: Annotated[int, Meta(ge=1)] = 1


class Size(msgspec.Struct):
    """A setting in bytes without an upper bound."""

    memory: Annotated[int, Meta(ge=1), Kind.BYTES] | None = None


@pytest.mark.parametrize(
    ("settings", "setting"), [(WholeNumber, "WholeNumber.count"), (Size, "Size.memory")]
)
def test_a_whole_number_without_an_upper_bound_is_refused(
    settings: type[msgspec.Struct], setting: str
) -> None:
    with pytest.raises(TypeError, match=rf"{setting} is a whole number without an upper bound"):
        make_section(settings)
