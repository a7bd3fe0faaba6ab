"""The scripts with other constants, so that few jobs reach them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from nimburion.backends.redis import scripts
from nimburion.backends.redis.scripts import Script, build_scripts


def build_scripts_with(constants: Mapping[str, int], *, flagged: bool) -> Mapping[str, Script]:
    """Build the scripts with these constants."""
    inline_constants = scripts.inline_constants

    def shrink(declaration: re.Match[str]) -> str:
        names, values = declaration[1].split(", "), declaration[2].split(", ")
        small = [str(constants.get(name, value)) for name, value in zip(names, values, strict=True)]
        return f"local {declaration[1]} = {', '.join(small)}\n"

    def inline_small_constants(text: str) -> str:
        return inline_constants(scripts._CONSTANTS.sub(shrink, text))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "inline_constants", inline_small_constants)
        return build_scripts.__wrapped__(flagged=flagged)
