"""What servers really say, and what it means: nothing of the driver comes out of the store."""

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
    code_of,
    lacks_script,
    meaning_of,
    moves_on,
    redirect_of,
)
from nimburion.backends.server.url import Node
from nimburion.core.errors import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    NimburionError,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    Unstorable,
)
from tests.servers import Binary, Cluster, Server
from tests.servers.waiting import until

WRITE = "return redis.call('SET', KEYS[1], '1')"
LONGER = "redis.call('PING') return redis.call('HSET', KEYS[1], 'a', '1')"


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Connection]:
    """A bare connection of the driver's."""
    made = {"host": "127.0.0.1", "port": server.port, "protocol": 2, "socket_timeout": 10}
    connection = Connection(**{**made, **options})
    await connection.connect()  # type: ignore[no-untyped-call]
    try:
        yield connection
    finally:
        await connection.disconnect(nowait=True)


async def fault(connection: Connection, *command: Any) -> Exception:
    """What a command raises."""
    with pytest.raises((driver.RedisError, UnicodeEncodeError)) as caught:
        await ask(connection, *command)
    return caught.value


def refused() -> pytest.RaisesExc[driver.RedisError]:
    """Expect an error of the driver's."""
    return pytest.raises(driver.RedisError)


def said(error: Exception, *, sent: bool = True) -> NimburionError:
    """The meaning, which keeps nothing of Lua's trailer and fits on one line."""
    meaning = meaning_of(error, "Redis x", sent=sent)
    assert str(meaning).startswith("Redis ")
    assert "\n" not in str(meaning)
    return meaning


async def ask(connection: Connection, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


# --- from real servers --------------------------------------------------------------------------


async def test_a_full_server(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("CONFIG", "SET", "maxmemory", "1kb")
        async with connected(server) as connection:
            for command in [("SET", "a", "b"), ("EVAL", WRITE, 1, "a"), ("EVAL", LONGER, 1, "a")]:
                error = await fault(connection, *command)
                assert code_of(error) == "OOM", error
                assert isinstance(said(error), StoreFull)
                assert not breaks_connection(error)


async def test_a_server_that_cannot_save(redis_binary: Binary) -> None:
    with Server(redis_binary, "save 3600 1", "dbfilename gone.rdb") as server:
        (server.folder / "gone.rdb").mkdir()
        server.ask("SET", "a", "b")
        server.ask("BGSAVE")
        until(lambda: status_of(server) == "err", "the save fails")
        async with connected(server) as connection:
            for command in [("SET", "a", "b"), ("EVAL", WRITE, 1, "a")]:
                error = await fault(connection, *command)
                assert code_of(error) == "MISCONF", error
                assert isinstance(said(error), StoreReadOnly)


def status_of(server: Server) -> str:
    """How the last save went."""
    with server.client() as client:
        return str(client.info("persistence")["rdb_last_bgsave_status"])


async def test_a_replica(redis_binary: Binary) -> None:
    with Server(redis_binary) as primary, Server(redis_binary) as server:
        async with connected(server) as connection, connected(server) as waiting:
            await waiting.send_command("BLPOP", "nothing", 0)
            until(lambda: blocked(server) == 1, "the call blocks")
            server.ask("REPLICAOF", "127.0.0.1", primary.port)
            with pytest.raises(driver.RedisError) as unblocked:
                await waiting.read_response()
            read_only = [
                await fault(connection, "SET", "a", "b"),
                await fault(connection, "EVAL", WRITE, 1, "a"),
            ]
        assert code_of(unblocked.value) == "UNBLOCKED"
        assert [code_of(error) for error in read_only] == ["READONLY"] * 2
        for error in [unblocked.value, *read_only]:
            meaning = said(error)
            assert isinstance(meaning, BackendUnavailable)
            assert meaning.outcome == "not applied"
            assert moves_on(error)


def blocked(server: Server) -> int:
    """How many clients wait in a blocking call."""
    with server.client() as client:
        return int(client.info("clients")["blocked_clients"])


async def test_too_few_replicas(redis_binary: Binary) -> None:
    with Server(redis_binary, "min-replicas-to-write 1") as server:
        async with connected(server) as connection:
            error = await fault(connection, "SET", "a", "b")
    assert code_of(error) == "NOREPLICAS"
    assert moves_on(error)
    assert isinstance(said(error), BackendUnavailable)


async def test_a_key_of_another_type(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("SET", "a", "text")
        async with connected(server) as connection:
            for command in [("HSET", "a", "b", "c"), ("EVAL", LONGER, 1, "a")]:
                error = await fault(connection, *command)
                assert code_of(error) == "WRONGTYPE", error
                assert isinstance(said(error), StoreCorrupt)


async def test_scripts_that_are_not_there_or_fail(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with connected(server) as connection:
            gone = await fault(connection, "EVALSHA", "0" * 40, 0)
            failed = await fault(connection, "EVAL", "return nil .. 'x'", 0)
            own = await fault(connection, "EVAL", "return {err='OUTOFORDER 3'}", 0)
            no_code = await fault(connection, "EVAL", "return {err='no code'}", 0)
    assert lacks_script(gone)
    assert isinstance(said(gone), BackendUnavailable)
    assert (code_of(failed), code_of(own), code_of(no_code)) == ("ERR", "OUTOFORDER", "ERR")
    assert type(said(failed)) is BackendError
    assert "attempt to concatenate" in str(said(failed))
    assert "on @user_script" not in str(said(failed))
    assert not lacks_script(failed)
    assert not moves_on(failed)


async def test_a_server_that_a_script_holds(redis_binary: Binary) -> None:
    with Server(redis_binary, "lua-time-limit 10") as server:
        loop = threading.Thread(target=outlast, args=(server,))
        loop.start()
        async with connected(server) as connection:
            error = await first_refusal(connection)
            await ask(connection, "SCRIPT", "KILL")
        loop.join()
    assert code_of(error) == "BUSY"
    meaning = said(error)
    assert isinstance(meaning, BackendUnavailable)
    assert meaning.outcome == "not applied"


def outlast(server: Server) -> None:
    """Run a script until it is killed."""
    with pytest.raises(driver.ResponseError, match="killed"):
        server.ask("EVAL", "while true do end", 0)


async def first_refusal(connection: Connection) -> Exception:
    """Ask until the server refuses."""
    async with asyncio.timeout(10):
        while True:
            try:
                await ask(connection, "PING")
            except driver.ResponseError as error:
                return error
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("login", "advice"),
    [
        ({}, "asks for a password; set one"),
        ({"password": "wrong"}, "refuses this user or password"),
        ({"username": "nobody", "password": "right"}, "refuses this user or password"),
    ],
)
async def test_a_wrong_login(login: dict[str, str], advice: str, redis_binary: Binary) -> None:
    with Server(redis_binary, password="right") as server, refused() as caught:
        async with connected(server, **login) as connection:
            await ask(connection, "PING")
    meaning = said(caught.value)
    assert isinstance(meaning, ConfigurationError)
    assert advice in str(meaning)
    assert "right" not in str(meaning)


async def test_a_password_for_a_server_without_one(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, refused() as caught:
        async with connected(server, password="some"):
            pass
    meaning = said(caught.value)
    assert isinstance(meaning, ConfigurationError)
    assert "has no password, but one is set" in str(meaning)


async def test_rights_that_are_missing(redis_binary: Binary) -> None:
    user = "worker on >pw ~{n}:* +@all -get -config"
    with Server(redis_binary, users=[user]) as server:
        async with connected(server, username="worker", password="pw") as connection:
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
                error = await fault(connection, *command)
                assert code_of(error) == "NOPERM", error
                meaning = said(error)
                assert isinstance(meaning, ConfigurationError)
                assert advice in str(meaning)


async def test_a_cluster_whose_slots_lie_elsewhere_or_move(redis_binary: Binary) -> None:
    with Cluster(redis_binary) as cluster:
        slot = cluster.slot_of("{n}:a")
        owner = cluster.owner_of(slot)
        other = cluster.other_than(owner)
        for key in ("{n}:a", "{n}:b"):
            owner.ask("SET", key, "1")
        write = ("EVAL", WRITE)
        async with connected(owner) as here, connected(other) as there:
            moved = await fault(there, *write, 1, "{n}:a")
            crossed = await fault(here, *write, 2, "{n}:a", "{m}:a")
            cluster.open_slot(slot, owner, other)
            asks = await fault(here, *write, 1, "{n}:new")
            cluster.move_keys(slot, owner, other, 1)
            again = await fault(here, *write, 2, "{n}:a", "{n}:b")
            cluster.move_keys(slot, owner, other)
            cluster.hand_slot(slot, owner, other)
            for node in cluster.nodes:
                node.ask("CLUSTER", "DELSLOTS", slot)
            down = await fault(there, *write, 1, "{n}:a")
    codes = [code_of(error) for error in (moved, asks, again, down)]
    half_moved = "TRYAGAIN" if redis_binary.version >= (7,) else "ASK"
    assert codes == ["MOVED", "ASK", half_moved, "CLUSTERDOWN"]
    assert redirect_of(moved) == Node("127.0.0.1", owner.port)
    for error in (moved, asks, again, down):
        assert moves_on(error)
        assert not breaks_connection(error)
        meaning = said(error)
        assert isinstance(meaning, BackendUnavailable)
        assert meaning.outcome == "not applied"
    assert code_of(crossed) == "CROSSSLOT"
    assert type(said(crossed)) is BackendError


async def test_what_cannot_be_sent(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with connected(server) as connection:
            for value in ("\udc00", None):
                error = await fault(connection, "SET", "a", value)
                assert isinstance(said(error), Unstorable)


async def test_a_request_that_is_too_large(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        async with connected(server) as connection:
            # Its size is enough to be refused; what came behind it could be cut off with the line.
            await connection.send_packed_command(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2000000\r\n")
            with pytest.raises(driver.RedisError) as caught:
                await connection.read_response()
    assert isinstance(said(caught.value), Unstorable)


async def test_a_db_that_is_not_there(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, refused() as caught:
        async with connected(server, db=99):
            pass
    meaning = said(caught.value)
    assert isinstance(meaning, ConfigurationError)
    assert "no such db" in str(meaning)


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
    assert code_of(driver.ResponseError(text)) == code


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
def test_what_sends_us_elsewhere_was_not_applied(error: Exception) -> None:
    meaning = said(error, sent=True)
    assert isinstance(meaning, BackendUnavailable)
    assert meaning.outcome == "not applied"
    assert moves_on(error)


def test_where_moved_points_to() -> None:
    assert redirect_of(driver.MovedError("3999 127.0.0.1:6381")) == Node("127.0.0.1", 6381)
    assert redirect_of(driver.MovedError("3999 [::1]:6381")) == Node("::1", 6381)
    assert redirect_of(driver.MovedError("3999 :6381")) == Node("", 6381)
    plain = driver.ResponseError("MOVED 3999 127.0.0.1:6381")  # as redis-py 5 has it
    assert redirect_of(plain) == Node("127.0.0.1", 6381)
    assert redirect_of(driver.AskError("3999 127.0.0.1:6381")) is None


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
        meaning = said(make(), sent=sent)
        assert isinstance(meaning, BackendUnavailable)
        assert meaning.outcome == outcome
    assert breaks_connection(make())
    assert not moves_on(make())


def test_too_many_clients_were_not_heard() -> None:
    error = driver.ConnectionError("max number of clients reached")
    meaning = said(error, sent=True)
    assert isinstance(meaning, BackendUnavailable)
    assert meaning.outcome == "not applied"
    assert "maxclients" in str(meaning)
    assert breaks_connection(error)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("OOM", StoreFull, "the server's memory is full"),
        ("MISCONF", StoreReadOnly, "cannot save to its disk"),
        ("WRONGTYPE", StoreCorrupt, "holds something else"),
        ("BUSY", BackendUnavailable, "a script that does not end"),
        ("NOSCRIPT", BackendUnavailable, "has forgotten our scripts"),
        ("DENIED", ConfigurationError, "in protected mode"),
    ],
)
def test_each_code_has_words_of_its_own(code: str, kind: type[Exception], words: str) -> None:
    meaning = meaning_of(driver.ResponseError(f"{code} it said {{so}}"), "Redis {h}", sent=True)
    assert type(meaning) is kind
    assert str(meaning).startswith("Redis {h}: ")
    assert words in str(meaning)
    assert getattr(meaning, "outcome", "not applied") == "not applied"


def test_an_unknown_command_is_a_matter_of_configuration() -> None:
    error = driver.ResponseError("unknown command 'EVALSHA', with args beginning with: ''")
    assert isinstance(said(error), ConfigurationError)


def test_the_arguments_of_an_unknown_command_are_not_repeated() -> None:
    """A server, or a proxy, that does not know AUTH repeats the password."""
    text = "unknown command 'AUTH', with args beginning with: 'app' 'hunter2' "
    assert "'AUTH'" in str(said(driver.ResponseError(text)))
    assert "hunter2" not in str(said(driver.ResponseError(text)))
