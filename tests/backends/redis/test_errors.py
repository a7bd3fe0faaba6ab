"""What servers really say, and what it means: nothing of the driver comes out of the backend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as driver
from redis.asyncio.connection import Connection

from nimburion.backends.redis.errors import (
    breaks_connection,
    get_error_code,
    lacks_script,
    map_error,
    needs_other_server,
    parse_redirect,
)
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigurationError,
    NimburionError,
    Unstorable,
)
from tests.servers import Binary, Cluster, Server
from tests.waiting import block_until, wait_until

WRITE = "return redis.call('SET', KEYS[1], '1')"
LONGER = "redis.call('PING') return redis.call('HSET', KEYS[1], 'a', '1')"


@asynccontextmanager
async def open_connection(server: Server, **options: Any) -> AsyncIterator[Connection]:
    """A bare connection of the driver's."""
    made = {"host": "127.0.0.1", "port": server.port, "protocol": 2, "socket_timeout": 10}
    connection = Connection(**{**made, **options})
    await connection.connect()  # type: ignore[no-untyped-call]
    try:
        yield connection
    finally:
        await connection.disconnect(nowait=True)


async def get_driver_error(connection: Connection, *command: Any) -> Exception:
    """What a command raises."""
    with pytest.raises((driver.RedisError, UnicodeEncodeError)) as caught:
        await ask(connection, *command)
    return caught.value


def expect_error() -> pytest.RaisesExc[driver.RedisError]:
    """Expect an error of the driver's."""
    return pytest.raises(driver.RedisError)


def map_to_contract(error: Exception, *, sent: bool = True) -> NimburionError:
    """The meaning, which keeps nothing of Lua's trailer and fits on one line."""
    mapped = map_error(error, "Redis x", sent=sent)
    assert str(mapped).startswith("Redis ")
    assert "\n" not in str(mapped)
    return mapped


async def ask(connection: Connection, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


# --- from real servers --------------------------------------------------------------------------


async def test_a_full_server(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("CONFIG", "SET", "maxmemory", "1kb")
        async with open_connection(server) as connection:
            for command in [("SET", "a", "b"), ("EVAL", WRITE, 1, "a"), ("EVAL", LONGER, 1, "a")]:
                error = await get_driver_error(connection, *command)
                assert get_error_code(error) == "OOM", error
                assert isinstance(map_to_contract(error), BackendFull)
                assert not breaks_connection(error)


async def test_a_server_that_cannot_save(redis_binary: Binary) -> None:
    with Server(redis_binary, "save 3600 1", "dbfilename gone.rdb") as server:
        (server.folder / "gone.rdb").mkdir()
        server.ask("SET", "a", "b")
        server.ask("BGSAVE")
        block_until(lambda: read_save_status(server) == "err", "the save fails")
        async with open_connection(server) as connection:
            for command in [("SET", "a", "b"), ("EVAL", WRITE, 1, "a")]:
                error = await get_driver_error(connection, *command)
                assert get_error_code(error) == "MISCONF", error
                assert isinstance(map_to_contract(error), BackendReadOnly)


def read_save_status(server: Server) -> str:
    """How the last save went."""
    with server.client() as client:
        return str(client.info("persistence")["rdb_last_bgsave_status"])


async def test_a_replica(redis_binary: Binary) -> None:
    with Server(redis_binary) as primary, Server(redis_binary) as server:
        async with open_connection(server) as connection, open_connection(server) as waiting:
            await waiting.send_command("BLPOP", "nothing", 0)
            block_until(lambda: count_blocked(server) == 1, "the call blocks")
            server.ask("REPLICAOF", "127.0.0.1", primary.port)
            with pytest.raises(driver.RedisError) as unblocked:
                await waiting.read_response()
            read_only = [
                await get_driver_error(connection, "SET", "a", "b"),
                await get_driver_error(connection, "EVAL", WRITE, 1, "a"),
            ]
        assert get_error_code(unblocked.value) == "UNBLOCKED"
        assert [get_error_code(error) for error in read_only] == ["READONLY"] * 2
        for error in [unblocked.value, *read_only]:
            mapped = map_to_contract(error)
            assert isinstance(mapped, BackendUnavailable)
            assert mapped.outcome == "not applied"
            assert needs_other_server(error)


def count_blocked(server: Server) -> int:
    """How many clients wait in a blocking call."""
    with server.client() as client:
        return int(client.info("clients")["blocked_clients"])


async def test_too_few_replicas(redis_binary: Binary) -> None:
    with Server(redis_binary, "min-replicas-to-write 1") as server:
        async with open_connection(server) as connection:
            error = await get_driver_error(connection, "SET", "a", "b")
    assert get_error_code(error) == "NOREPLICAS"
    assert needs_other_server(error)
    assert isinstance(map_to_contract(error), BackendUnavailable)


async def test_a_key_of_another_type(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("SET", "a", "text")
        async with open_connection(server) as connection:
            for command in [("HSET", "a", "b", "c"), ("EVAL", LONGER, 1, "a")]:
                error = await get_driver_error(connection, *command)
                assert get_error_code(error) == "WRONGTYPE", error
                assert isinstance(map_to_contract(error), BackendCorrupt)


async def test_scripts_that_are_not_there_or_fail(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with open_connection(server) as connection:
            gone = await get_driver_error(connection, "EVALSHA", "0" * 40, 0)
            failed = await get_driver_error(connection, "EVAL", "return nil .. 'x'", 0)
            own = await get_driver_error(connection, "EVAL", "return {err='OUTOFORDER 3'}", 0)
            no_code = await get_driver_error(connection, "EVAL", "return {err='no code'}", 0)
    assert lacks_script(gone)
    assert isinstance(map_to_contract(gone), BackendUnavailable)
    assert (get_error_code(failed), get_error_code(own), get_error_code(no_code)) == (
        "ERR",
        "OUTOFORDER",
        "ERR",
    )
    assert type(map_to_contract(failed)) is BackendError
    assert "attempt to concatenate" in str(map_to_contract(failed))
    assert "on @user_script" not in str(map_to_contract(failed))
    assert not lacks_script(failed)
    assert not needs_other_server(failed)


async def test_a_server_that_a_script_holds(redis_binary: Binary) -> None:
    with Server(redis_binary, "lua-time-limit 10") as server:
        loop = threading.Thread(target=outlast, args=(server,))
        loop.start()
        async with open_connection(server) as connection:
            error = await get_first_error(connection)
            await ask(connection, "SCRIPT", "KILL")
        loop.join()
    assert get_error_code(error) == "BUSY"
    mapped = map_to_contract(error)
    assert isinstance(mapped, BackendUnavailable)
    assert mapped.outcome == "not applied"


def outlast(server: Server) -> None:
    """Run a script until it is killed."""
    with pytest.raises(driver.ResponseError, match="killed"):
        server.ask("EVAL", "while true do end", 0)


async def get_first_error(connection: Connection) -> Exception:
    """Ask until the server refuses."""
    errors: list[Exception] = []

    async def is_refused() -> bool:
        try:
            await ask(connection, "PING")
        except driver.ResponseError as error:
            errors.append(error)
        return bool(errors)

    await wait_until(is_refused, "the server refuses")
    return errors[0]


@pytest.mark.parametrize(
    ("login", "advice"),
    [
        ({}, "asks for a password; set one"),
        ({"password": "wrong"}, "refuses this user or password"),
        ({"username": "nobody", "password": "right"}, "refuses this user or password"),
    ],
)
async def test_a_wrong_login(login: dict[str, str], advice: str, redis_binary: Binary) -> None:
    with Server(redis_binary, password="right") as server, expect_error() as caught:
        async with open_connection(server, **login) as connection:
            await ask(connection, "PING")
    mapped = map_to_contract(caught.value)
    assert isinstance(mapped, ConfigurationError)
    assert advice in str(mapped)
    assert "right" not in str(mapped)


async def test_a_password_for_a_server_without_one(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, expect_error() as caught:
        async with open_connection(server, password="some"):
            pass
    mapped = map_to_contract(caught.value)
    assert isinstance(mapped, ConfigurationError)
    assert "has no password, but one is set" in str(mapped)


async def test_rights_that_are_missing(redis_binary: Binary) -> None:
    user = "worker on >pw ~{n}:* +@all -get -config"
    with Server(redis_binary, users=[user]) as server:
        async with open_connection(server, username="worker", password="pw") as connection:
            get = "return redis.call('GET', KEYS[1])"
            commands: list[tuple[tuple[Any, ...], str]] = [
                (("GET", "{n}:a"), "may not run 'GET'; grant it (ACL SETUSER … +get)"),
                (("CONFIG", "GET", "save"), "may not run 'CONFIG"),
                (("SET", "a", "b"), "~{NAMESPACE}:*"),
                (("EVAL", WRITE, 1, "a"), "~{NAMESPACE}:*"),
                (("EVAL", "return redis.call('SET', 'a', 'b')", 0), "~{NAMESPACE}:*"),
                (("EVAL", get, 1, "{n}:a"), "grant it"),
            ]
            for command, advice in commands:
                error = await get_driver_error(connection, *command)
                assert get_error_code(error) == "NOPERM", error
                mapped = map_to_contract(error)
                assert isinstance(mapped, ConfigurationError)
                assert advice in str(mapped)


async def test_a_cluster_whose_slots_lie_elsewhere_or_move(redis_binary: Binary) -> None:
    with Cluster(redis_binary) as cluster:
        slot = cluster.compute_slot("{n}:a")
        owner = cluster.find_owner(slot)
        other = cluster.find_other(owner)
        for key in ("{n}:a", "{n}:b"):
            owner.ask("SET", key, "1")
        write = ("EVAL", WRITE)
        async with open_connection(owner) as here, open_connection(other) as there:
            moved = await get_driver_error(there, *write, 1, "{n}:a")
            crossed = await get_driver_error(here, *write, 2, "{n}:a", "{m}:a")
            cluster.open_slot(slot, owner, other)
            asks = await get_driver_error(here, *write, 1, "{n}:new")
            cluster.move_keys(slot, owner, other, 1)
            again = await get_driver_error(here, *write, 2, "{n}:a", "{n}:b")
            cluster.move_keys(slot, owner, other)
            cluster.assign_slot(slot, owner, other)
            for node in cluster.nodes:
                node.ask("CLUSTER", "DELSLOTS", slot)
            down = await get_driver_error(there, *write, 1, "{n}:a")
    codes = [get_error_code(error) for error in (moved, asks, again, down)]
    half_moved = "TRYAGAIN" if redis_binary.version >= (7,) else "ASK"
    assert codes == ["MOVED", "ASK", half_moved, "CLUSTERDOWN"]
    assert parse_redirect(moved) == Endpoint("127.0.0.1", owner.port)
    for error in (moved, asks, again, down):
        assert needs_other_server(error)
        assert not breaks_connection(error)
        mapped = map_to_contract(error)
        assert isinstance(mapped, BackendUnavailable)
        assert mapped.outcome == "not applied"
    assert get_error_code(crossed) == "CROSSSLOT"
    assert type(map_to_contract(crossed)) is BackendError


async def test_what_cannot_be_sent(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with open_connection(server) as connection:
            for value in ("\udc00", None):
                error = await get_driver_error(connection, "SET", "a", value)
                assert isinstance(map_to_contract(error), Unstorable)


async def test_a_request_that_is_too_large(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        async with open_connection(server) as connection:
            # Its size is enough to be refused; what came behind it could be cut off with the line.
            await connection.send_packed_command(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2000000\r\n")
            with pytest.raises(driver.RedisError) as caught:
                await connection.read_response()
    assert isinstance(map_to_contract(caught.value), Unstorable)


async def test_a_db_that_is_not_there(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, expect_error() as caught:
        async with open_connection(server, db=99):
            pass
    mapped = map_to_contract(caught.value)
    assert isinstance(mapped, ConfigurationError)
    assert "no such db" in str(mapped)


# --- from what versions say that may not be here -------------------------------------------------

SCRIPT_62 = "ERR Error running script (call to f_" + "ab" * 20 + "): @user_script:1: "


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{SCRIPT_62}@user_script: 1: -OOM command not allowed when used memory.", "OOM"),
        ("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (f"{SCRIPT_62}@user_script: 1: -READONLY You can't write against a", "READONLY"),
        (f"{SCRIPT_62}@user_script: 1: -MISCONF Redis is configured to", "MISCONF"),
        (f"{SCRIPT_62}WRONGTYPE Operation against a key holding the wrong kind", "WRONGTYPE"),
        (f"{SCRIPT_62}@user_script: 1: The user executing the script can't run this", "NOPERM"),
        (f"{SCRIPT_62}user_script:1: attempt to index local 'a' (a nil value)", "ERR"),
        ("ERR OOM is not meant here", "ERR"),
        ("OUTOFORDER 3", "OUTOFORDER"),
        ("DENIED Redis is running in protected mode", "DENIED"),
        ("", "ERR"),
    ],
)
def test_the_code_is_found_where_old_servers_hide_it(text: str, code: str) -> None:
    assert get_error_code(driver.ResponseError(text)) == code


@pytest.mark.parametrize(
    "error",
    [
        driver.BusyLoadingError("Redis is loading the dataset in memory"),
        driver.MasterDownError("Link with MASTER is down"),
        driver.ClusterDownError("Hash slot not served"),
        driver.TryAgainError("Multiple keys request during rehashing of slot"),
        driver.AskError("3999 127.0.0.1:6381"),
        driver.MovedError("3999 127.0.0.1:6381"),
        driver.ResponseError("LOADING Redis is loading the dataset in memory"),
    ],
)
def test_redirects_are_not_applied(error: Exception) -> None:
    mapped = map_to_contract(error, sent=True)
    assert isinstance(mapped, BackendUnavailable)
    assert mapped.outcome == "not applied"
    assert needs_other_server(error)


def test_where_moved_points_to() -> None:
    assert parse_redirect(driver.MovedError("3999 127.0.0.1:6381")) == Endpoint("127.0.0.1", 6381)
    assert parse_redirect(driver.MovedError("3999 [::1]:6381")) == Endpoint("::1", 6381)
    assert parse_redirect(driver.MovedError("3999 :6381")) == Endpoint("", 6381)
    plain = driver.ResponseError("MOVED 3999 127.0.0.1:6381")  # as redis-py 5 has it
    assert parse_redirect(plain) == Endpoint("127.0.0.1", 6381)
    assert parse_redirect(driver.AskError("3999 127.0.0.1:6381")) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: driver.ConnectionError("Connection closed by server."),
        lambda: driver.TimeoutError("Timeout reading from x"),
        lambda: driver.InvalidResponse("Protocol error"),
        TimeoutError,
        ConnectionResetError,
        lambda: asyncio.IncompleteReadError(b"", None),
    ],
)
def test_without_an_answer_it_depends_on_what_was_sent(make: Callable[[], Exception]) -> None:
    for sent, outcome in ((True, "unknown"), (False, "not applied")):
        mapped = map_to_contract(make(), sent=sent)
        assert isinstance(mapped, BackendUnavailable)
        assert mapped.outcome == outcome
    assert breaks_connection(make())
    assert not needs_other_server(make())


def test_too_many_clients_is_not_applied() -> None:
    error = driver.ConnectionError("max number of clients reached")
    mapped = map_to_contract(error, sent=True)
    assert isinstance(mapped, BackendUnavailable)
    assert mapped.outcome == "not applied"
    assert "maxclients" in str(mapped)
    assert breaks_connection(error)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("OOM", BackendFull, "the server's memory is full"),
        ("MISCONF", BackendReadOnly, "cannot save to its disk"),
        ("WRONGTYPE", BackendCorrupt, "holds something else"),
        ("BUSY", BackendUnavailable, "a script that does not end"),
        ("NOSCRIPT", BackendUnavailable, "does not have the scripts"),
        ("DENIED", ConfigurationError, "in protected mode"),
    ],
)
def test_each_code_has_its_own_message(code: str, kind: type[Exception], message: str) -> None:
    mapped = map_error(driver.ResponseError(f"{code} it said {{so}}"), "Redis {h}", sent=True)
    assert type(mapped) is kind
    assert str(mapped).startswith("Redis {h}: ")
    assert message in str(mapped)
    assert getattr(mapped, "outcome", "not applied") == "not applied"


def test_an_unknown_command_is_a_matter_of_configuration() -> None:
    error = driver.ResponseError("unknown command 'EVALSHA', with args beginning with: ''")
    assert isinstance(map_to_contract(error), ConfigurationError)


def test_the_arguments_of_an_unknown_command_are_not_repeated() -> None:
    """A server, or a proxy, that does not know AUTH repeats the password."""
    text = "unknown command 'AUTH', with args beginning with: 'app' 'hunter2' "
    assert "'AUTH'" in str(map_to_contract(driver.ResponseError(text)))
    assert "hunter2" not in str(map_to_contract(driver.ResponseError(text)))
