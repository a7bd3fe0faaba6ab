"""The section `server`, and the tokens that it names: each is in a file or in a variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from nimburion.config.schema import ROOT, SERVER, make_settings, read_section
from nimburion.config.tree import Written, get_part, make_refusal
from nimburion.core.access_rights import describe_exposure
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import ServerSettings, TokenSettings

MAX_TOKEN_FILE = 4096
"""The maximum size of the file of a token, in bytes."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,1024}=*")
"""At least 16 characters, of those that RFC 6750 allows in the header `Authorization`."""


def read_server_settings(tree: Written) -> ServerSettings:
    """Return the section `server`, validated. The tokens themselves are not read."""
    read = read_section(ROOT, tree, ())
    values = cast("dict[str, object]", read.get("server", {}))
    written = get_part(tree, "server")
    tokens = cast("list[dict[str, object]]", values.get("tokens", []))
    for index, token in enumerate(tokens):
        if ("file" in token) == ("variable" in token):
            place = getattr(get_part(written, "tokens"), "place", tree.place)
            path = ("server", "tokens", index)
            raise make_refusal(place, path, "name either the `file` or the `variable` of the token")
    settings: ServerSettings = make_settings(SERVER, values)
    problem = describe_exposure(settings)
    if problem is not None:
        place = getattr(get_part(written, "host"), "place", tree.place)
        raise make_refusal(place, ("server", "host"), problem)
    return settings


def read_token(settings: TokenSettings, environment: Mapping[str, str] = os.environ) -> str:
    """Return a token, from its file or its variable, without white space around it.

    Raises:
        ConfigurationError: it cannot be read, or is not a token. The message never shows it.
    """
    if settings.file is not None:
        source = settings.file
        content = _read_file(settings, source)
    else:
        source = f"the variable {settings.variable}"
        content = environment.get(settings.variable or "", "")
    token = content.strip()
    if not _TOKEN.fullmatch(token):
        found = f"{len(token)} characters" if token else "nothing"
        raise _make_error(
            settings,
            f"expected in {source} a token of 16 to 1024 characters of A-Z a-z 0-9 . _ ~ + / -, "
            f"found {found}; make one with `openssl rand -hex 32`",
        )
    return token


def _read_file(settings: TokenSettings, source: str) -> str:
    try:
        with Path(source).open("rb") as opened:
            content = opened.read(MAX_TOKEN_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _make_error(settings, f"{source} cannot be read: {reason}") from None
    return content.decode("utf-8", errors="replace")


def _make_error(settings: TokenSettings, problem: str) -> ConfigurationError:
    return ConfigurationError(f"server.tokens, {settings.name}: {problem}")
