"""Tokens come from a file or a variable, and no message shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion import config
from nimburion.config import ConfigurationError, TokenSettings
from nimburion.config.access_tokens import MAX_TOKEN_FILE, read_token

TOKEN = "0123456789abcdef-._~+/=="


def make_settings(**source: str) -> TokenSettings:
    return TokenSettings(name="ops", rights=("read",), **source)


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(make_settings(file=str(file))) == TOKEN


def test_a_token_is_read_from_its_variable() -> None:
    assert read_token(make_settings(variable="OPS"), {"OPS": TOKEN}) == TOKEN


@pytest.mark.parametrize(
    "token", ["", "short", "0123456789abcde", "a" * 1025, "with space 12345678"]
)
def test_a_weak_token_is_refused_and_not_shown(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    for settings in (make_settings(file=str(file)), make_settings(variable="OPS")):
        with pytest.raises(ConfigurationError, match=r"server\.tokens, ops: expected") as raised:
            read_token(settings, {"OPS": token})
        assert not token or token not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_token(make_settings(file=str(tmp_path / "none")))
    large = tmp_path / "large"
    large.write_bytes(b"a" * (MAX_TOKEN_FILE + 10))
    with pytest.raises(ConfigurationError, match="16 to 1024 characters"):
        read_token(make_settings(file=str(large)))


def test_tokens_can_be_listed_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = "[{name: ops, rights: [read, operate], variable: OPS}]"
    monkeypatch.setenv("NIMBURION_SERVER__TOKENS", tokens)
    monkeypatch.setenv("NIMBURION_SERVER__HOST", "0.0.0.0")
    monkeypatch.setenv("NIMBURION_SERVER__PORT", "80")
    settings = config.load().server
    assert (settings.host, settings.port) == ("0.0.0.0", 80)
    assert settings.tokens == (
        TokenSettings(name="ops", rights=("read", "operate"), variable="OPS"),
    )
