"""What the driver raises, in the words of the contract."""

from __future__ import annotations

import ssl

import asyncpg
import pytest

from nimburion.backends.postgres.connection.connect import map_connect_error
from nimburion.backends.postgres.errors import (
    breaks_connection,
    get_error_code,
    is_retryable,
    map_error,
)
from nimburion.backends.postgres.transactions import map_transaction_error
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigurationError,
    FormatMismatch,
    Unstorable,
    UnusableConnection,
)


def make_error(sqlstate: str, text: str = "what it said") -> asyncpg.PostgresError:
    """An error as the driver makes it of the server's message."""
    return asyncpg.PostgresError.new({"S": "ERROR", "V": "ERROR", "C": sqlstate, "M": text})


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("53100", BackendFull),
        ("XX001", BackendCorrupt),
        ("XX002", BackendCorrupt),
        ("42501", ConfigurationError),
        ("28P01", ConfigurationError),
        ("28000", ConfigurationError),
        ("3D000", ConfigurationError),
        ("42P01", FormatMismatch),
        ("42883", FormatMismatch),
        ("22021", Unstorable),
        ("22P05", Unstorable),
        ("23514", Unstorable),
        ("54000", Unstorable),
        ("42601", BackendError),
        ("NB001", BackendError),
    ],
)
def test_server_errors_are_mapped(sqlstate: str, kind: type[Exception]) -> None:
    error = make_error(sqlstate)
    mapped = map_error(error, "PostgreSQL h/d", sent=True)
    assert type(mapped) is kind
    assert "what it said" in str(mapped)
    assert "\n" not in str(mapped)


@pytest.mark.parametrize(
    "sqlstate", ["25006", "57P03", "57014", "55P03", "53300", "53200", "40001", "40P01", "58030"]
)
def test_transient_errors_are_not_applied(sqlstate: str) -> None:
    mapped = map_error(make_error(sqlstate), "PostgreSQL h/d", sent=True)
    assert isinstance(mapped, BackendUnavailable)
    assert mapped.outcome == "not applied"
    assert "nothing was written" in str(mapped)


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "08006", "08P01", "40003"])
def test_a_connection_that_is_ended_leaves_it_open(sqlstate: str) -> None:
    for sent, outcome in ((True, "unknown"), (False, "not applied")):
        mapped = map_error(make_error(sqlstate), "PostgreSQL h/d", sent=sent)
        assert isinstance(mapped, BackendUnavailable)
        assert mapped.outcome == outcome


@pytest.mark.parametrize(
    ("sqlstate", "kind", "message"),
    [
        ("42883", UnusableConnection, "one commit cannot cover both"),
        ("42P01", UnusableConnection, "one commit cannot cover both"),
        ("3F000", UnusableConnection, "one commit cannot cover both"),
        ("42501", UnusableConnection, "may not enqueue to"),
        ("25P02", UnusableConnection, "has failed already"),
        ("25006", BackendReadOnly, "takes no writes"),
        ("40001", BackendUnavailable, "run all of it again"),
        ("40P01", BackendUnavailable, "run all of it again"),
    ],
)
def test_errors_in_a_callers_transaction_say_what_to_do(
    sqlstate: str, kind: type[Exception], message: str
) -> None:
    error = make_error(sqlstate, "it said {so}")
    mapped = map_transaction_error(error, "PostgreSQL {h}", at_commit=True)
    assert type(mapped) is kind
    assert message in str(mapped)
    assert "PostgreSQL {h}" in str(mapped)
    assert "(it said {so})" in str(mapped)
    assert getattr(mapped, "outcome", "not applied") == "not applied"


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError("reset"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("unexpected message"),
        ssl.SSLError("broken"),
    ],
)
def test_lost_replies_are_mapped(error: Exception) -> None:
    for sent, outcome in ((True, "unknown"), (False, "not applied")):
        mapped = map_error(error, "PostgreSQL h/d", sent=sent)
        assert isinstance(mapped, BackendUnavailable)
        assert mapped.outcome == outcome
    assert breaks_connection(error)


def test_what_the_driver_cannot_send_is_unstorable() -> None:
    error = asyncpg.DataError("invalid input for query argument $1")
    assert type(map_error(error, "h", sent=True)) is Unstorable
    assert not breaks_connection(error)


def test_only_what_others_were_in_the_way_of_is_repeated() -> None:
    assert [
        code for code in ("40001", "40P01", "40003", "57P01") if is_retryable(make_error(code))
    ] == [
        "40001",
        "40P01",
    ]
    assert not is_retryable(TimeoutError())


def test_which_errors_end_a_connection() -> None:
    assert [
        code
        for code in ("57P01", "08006", "25006", "57P03", "40001", "23505", "53100")
        if breaks_connection(make_error(code))
    ] == ["57P01", "08006", "25006", "57P03"]
    assert get_error_code(OSError()) == ""


def test_the_message_has_the_hint_but_not_the_detail() -> None:
    error = asyncpg.PostgresError.new(
        {"S": "ERROR", "C": "42501", "M": "permission\ndenied", "D": "(1, secret)", "H": "Hint."}
    )
    assert "(permission denied Hint.)" in str(map_error(error, "h", sent=True))


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError(
            "cannot switch to state 12; another operation (2) is in progress"
        ),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
    ],
)
def test_internal_driver_messages_are_not_shown(error: Exception) -> None:
    mapped = map_error(error, "PostgreSQL h/d", sent=True)
    assert str(mapped) == (
        "PostgreSQL h/d: the connection was lost during a reply; it may have been applied or not"
    )
    begun = map_connect_error(error, Endpoint("h", 1), PostgresSettings())
    assert "h:1 closed the connection: it restarts, or is not a PostgreSQL server" in str(begun)
    assert "switch" not in str(begun)
    assert "another operation" not in str(begun)


def test_a_required_tls_connection_is_explained() -> None:
    error = make_error("28000", 'no pg_hba.conf entry for host "h", user "u", no encryption')
    assert "add sslmode=require" in str(map_error(error, "h", sent=False))
    assert "sslmode" not in str(map_error(make_error("28P01"), "h", sent=False))


def test_a_missing_privilege_names_the_command_for_the_owner() -> None:
    assert "migrate up --grant ROLE" in str(map_error(make_error("42501"), "h", sent=False))


@pytest.mark.parametrize("sqlstate", ["42P05", "26000", "25P02"])
def test_a_session_that_is_out_of_step_is_replaced_and_the_call_may_be_made_again(
    sqlstate: str,
) -> None:
    mapped = map_error(make_error(sqlstate), "h", sent=True)
    assert isinstance(mapped, BackendUnavailable)
    assert mapped.outcome == "not applied"
    assert breaks_connection(make_error(sqlstate))


def test_an_unexpected_answer_ends_the_connection() -> None:
    """A plan that must not change, a relation that is gone from a cache: for this session only."""
    codes = ("0A000", "XX000", "42601", "NB001", "57014", "42501")
    assert [code for code in codes if breaks_connection(make_error(code))] == [*codes[:3]]
