"""`nimburion migrate` says what is missing, does it, and is silent about nothing."""

from __future__ import annotations

import sqlite3

from tests.cli.conftest import CommandLine


def test_a_file_that_is_not_there_is_made_by_up_alone(nimburion: CommandLine) -> None:
    for verb in ("plan", "check"):
        missing = nimburion("migrate", verb)
        assert (missing.code, missing.out) == (3, "")
        assert "nimburion.db does not exist; " in missing.err
    assert not (nimburion.folder / "nimburion.db").exists()
    assert nimburion("migrate", "up").out == "done format 1: tables\n"
    assert nimburion("migrate", "up").out == "nothing to do: it was up to date\n"


def test_what_is_up_to_date_is_reported_as_such(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    assert nimburion("migrate", "plan").out == "nothing to do: it is up to date\n"
    checked = nimburion("migrate", "check")
    assert (checked.code, checked.out) == (0, "it is up to date\n")
    assert nimburion("migrate", "check", "--json").data == {"ok": True, "steps": []}


def test_what_is_missing_is_reported(nimburion: CommandLine) -> None:
    (nimburion.folder / "nimburion.db").touch()
    planned = nimburion("migrate", "plan")
    assert (planned.code, planned.out) == (0, "would do format 1: tables\n")
    checked = nimburion("migrate", "check")
    assert checked.code == 1
    assert checked.out == "to do: run nimburion migrate up for format 1: tables\n"
    assert nimburion("migrate", "up", "--json").data == {"steps": ["format 1: tables"]}
    assert nimburion("migrate", "check").code == 0


def test_a_newer_file_is_refused(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    with sqlite3.connect(nimburion.folder / "nimburion.db") as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    connection.close()
    for verb in ("plan", "up", "check"):
        refused = nimburion("migrate", verb)
        assert (refused.code, refused.out) == (3, "")
        assert "has format 99" in refused.err


def test_a_file_knows_no_roles(nimburion: CommandLine) -> None:
    refused = nimburion("migrate", "up", "--grant", "worker")
    assert (refused.code, refused.out) == (2, "")
    assert "has no roles; leave out --grant" in refused.err
