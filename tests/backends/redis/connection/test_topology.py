"""The server that takes writes is found; where none is, the error says why in one line."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection

from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.url import parse_url
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import BackendUnavailable, ConfigurationError, NimburionError
from tests.servers import Binary, Cluster, Proxy, RunningRedis, SentinelTrio, Server, valkey_binary
from tests.servers.certificates import Certificates, make_certificates, sign
from tests.servers.ports import free_port
from tests.waiting import wait_until

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def open_connection(servers: ServerLocator) -> AsyncIterator[AbstractConnection]:
    """A connection to the server that takes writes."""
    connection = await servers.connect()
    try:
        yield connection
    finally:
        await connection.disconnect(nowait=True)


async def ask(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


async def read_port(servers: ServerLocator) -> int:
    """The port of the server that is found, which must take a write."""
    async with open_connection(servers) as connection:
        assert await ask(connection, "SET", "{nimburion}:there", "1") == b"OK"
        _, port = await ask(connection, "CONFIG", "GET", "port")
        return int(port) or int((await ask(connection, "CONFIG", "GET", "tls-port"))[1])


async def get_connect_error(url: str, *, timeout: float = 5.0) -> NimburionError:
    """Why there is no connection; in one line, without the password."""
    with pytest.raises(NimburionError) as caught:
        await ServerLocator(parse_url(url), timeout=timeout).connect()
    error = caught.value
    assert "\n" not in str(error)
    assert "hunter2" not in str(error)
    assert str(error).startswith(parse_url(url).describe())
    if isinstance(error, BackendUnavailable):
        assert error.outcome == "not applied"
    return error


async def get_unavailable_message(url: str, *, timeout: float = 5.0) -> str:
    """The line that says why nobody can be reached."""
    error = await get_connect_error(url, timeout=timeout)
    assert isinstance(error, BackendUnavailable)
    return str(error)


async def get_configuration_message(url: str) -> str:
    """The line that says what is set wrongly."""
    error = await get_connect_error(url)
    assert isinstance(error, ConfigurationError)
    return str(error)


async def test_each_kind_of_server_takes_a_write(redis_server: RunningRedis) -> None:
    """With TLS, behind Sentinel and in a cluster too, where the run asks for these."""
    assert await read_port(ServerLocator(parse_url(redis_server.url))) > 0


# --- one server -----------------------------------------------------------------------------------


async def test_one_server_by_port_and_by_socket(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        for url in (server.url, server.address, f"unix://{server.socket}"):
            assert await read_port(ServerLocator(parse_url(url))) == server.port


async def test_user_password_db_and_name(redis_binary: Binary) -> None:
    with Server(redis_binary, users=["w%rk on >p@ss:w/rd ~* +@all"]) as server:
        url = f"redis://w%25rk:p%40ss:w%2Frd@{server.address}/3"
        async with open_connection(ServerLocator(parse_url(url))) as connection:
            info = (await ask(connection, "CLIENT", "LIST")).decode()
    own = next(line for line in info.splitlines() if "name=nimburion" in line)
    assert " db=3 " in own
    assert "lib-name=redis-py" not in own


async def test_few_round_trips(redis_binary: Binary) -> None:
    """One that logs in and one that asks what the server is: no more when a worker comes back."""
    with Server(redis_binary, password="pw") as server:
        async with Proxy(server.port) as proxy:
            chunks = count_requests(proxy)
            async with open_connection(
                ServerLocator(parse_url(f"redis://:pw@127.0.0.1:{proxy.port}/2"))
            ):
                pass
    assert len(chunks) == 3  # AUTH, SELECT, then name and role together


def count_requests(proxy: Proxy) -> list[int]:
    """What passes a proxy from us to the server, chunk by chunk."""
    chunks: list[int] = []
    passing = proxy._pass

    def noted(chunk: bytes, direction: Any) -> tuple[bytes, bool]:
        if direction == "requests":
            chunks.append(len(chunk))
        return passing(chunk, direction)

    proxy._pass = noted  # type: ignore[method-assign]
    return chunks


async def test_a_user_with_few_rights_may_come_in(redis_binary: Binary) -> None:
    with Server(redis_binary, users=["worker on >pw ~{nimburion}:* -@all +set +config"]) as server:
        assert (
            await read_port(ServerLocator(parse_url(server.url_for("worker", "pw")))) == server.port
        )


async def test_a_connection_waits_as_long_as_its_user_wants(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with open_connection(ServerLocator(parse_url(server.url), timeout=0.2)) as connection:
            assert connection.socket_timeout is None
            assert connection.health_check_interval == 0
            assert connection.retry._retries == 0
            assert await ask(connection, "BLPOP", "nothing", "0.4") is None
            assert await ask(connection, "ECHO", b"\xff") == b"\xff"


async def test_logins_that_are_refused(redis_binary: Binary) -> None:
    with Server(redis_binary, password="right") as server:
        connection = await get_configuration_message(f"redis://{server.address}")
        assert "asks for a password; set one" in connection
        connection = await get_configuration_message(f"redis://:hunter2@{server.address}")
        assert "refuses this user or password" in connection
    with Server(redis_binary) as server:
        connection = await get_configuration_message(f"redis://:hunter2@{server.address}")
        assert "has no password, but one is set" in connection
        assert "no such db" in await get_configuration_message(f"redis://{server.address}/99")


async def test_a_replica_names_its_primary(redis_binary: Binary) -> None:
    with Server(redis_binary) as primary, Server(redis_binary) as server:
        server.ask("REPLICAOF", "127.0.0.1", primary.port)
        connection = await get_unavailable_message(server.url)
    assert f"is a replica of 127.0.0.1:{primary.port} and takes no writes" in connection
    assert "name the primary, or use redis+sentinel://" in connection


async def test_a_server_with_too_many_clients(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with open_connection(ServerLocator(parse_url(server.url))) as first:
            await ask(first, "CONFIG", "SET", "maxclients", "1")
            connection = await get_unavailable_message(server.url)
    assert "maxclients" in connection or "hung up without an answer" in connection


# --- nobody there, or somebody else ---------------------------------------------------------------


async def test_nothing_listens() -> None:
    port = free_port()
    connection = await get_unavailable_message(f"redis://127.0.0.1:{port}")
    assert f"nothing listens at 127.0.0.1:{port}; start the server" in connection
    assert "nothing listens at localhost" in await get_unavailable_message(
        f"redis://localhost:{port}"
    )
    assert "there is no socket /nowhere/redis.sock" in await get_unavailable_message(
        "unix:///nowhere/redis.sock"
    )


async def test_a_name_that_is_not_known() -> None:
    assert "the name of nowhere.invalid:6379 is not known" in await get_unavailable_message(
        "redis://nowhere.invalid"
    )


async def test_a_socket_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "nothing listens at" in await get_unavailable_message(f"unix://{tmp_path}/file")


async def test_a_server_that_hangs(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.pause()
        connection = await get_unavailable_message(server.url, timeout=0.2)
        server.resume()
    assert f"no answer from {server.address} within 0.2 s" in connection


async def answer(data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Somebody who says this to whatever comes, and hangs up."""
    await reader.read(10)
    writer.write(data)
    await writer.drain()
    writer.close()


@asynccontextmanager
async def run_fake_server(data: bytes) -> AsyncIterator[str]:
    """The address of somebody who is no Redis server."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(data, reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Redis"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "is no Redis"),
        (b"N\x00\x00\x00", "is no Redis"),
        (b"\x15\x03\x01\x00\x02\x02F", "speaks TLS; use rediss:// there"),
        (
            b"",
            "closed the connection without a reply. Is it a Redis server? If it speaks TLS, use rediss://",
        ),
    ],
)
async def test_a_server_that_is_not_redis(data: bytes, message: str) -> None:
    async with run_fake_server(data) as settings:
        assert message in await get_unavailable_message(f"redis://{settings}")


# --- TLS: a port of ours that speaks it, in front of the server -----------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Signed for localhost and 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """A server without TLS."""
    with Server(valkey_binary()) as server:
        yield server


@asynccontextmanager
async def run_tls_proxy(
    port: int, files: Certificates, *, mutual: bool = False
) -> AsyncIterator[int]:
    """A port that speaks TLS and hands on to a server that does not; its number."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    if mutual:
        context.load_verify_locations(files.authority)
        context.verify_mode = ssl.CERT_REQUIRED

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.wait(
                [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            back.close()
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()


async def test_tls(plain: Server, certificates: Certificates, tmp_path: Path) -> None:
    sign("another", tmp_path / "ca.pem", tmp_path / "ca.key")
    async with run_tls_proxy(plain.port, certificates) as port:
        trusted = f"tls_ca={certificates.authority}"
        for query in (trusted, f"{trusted}&tls_verify=ca", "tls_verify=none"):
            assert (
                await read_port(ServerLocator(parse_url(f"rediss://127.0.0.1:{port}?{query}")))
                == plain.port
            )
        connection = await get_unavailable_message(f"rediss://127.0.0.1:{port}")
        assert "is not accepted" in connection
        assert "set tls_ca to the certificate of its authority" in connection
        connection = await get_unavailable_message(
            f"rediss://127.0.0.1:{port}?tls_ca={tmp_path / 'ca.pem'}"
        )
        assert "is not accepted" in connection
        assert "is not accepted" in await get_unavailable_message(
            f"rediss://127.0.0.1:{port}?tls_verify=ca"
        )
        connection = await get_unavailable_message(f"redis://127.0.0.1:{port}", timeout=1)
        assert "use rediss://" in connection


async def test_a_certificate_of_another_host(plain: Server, tmp_path: Path) -> None:
    files = Certificates(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    signer = ["-CA", str(files.authority), "-CAkey", str(tmp_path / "ca.key")]
    sign("authority", files.authority, tmp_path / "ca.key")
    other = "subjectAltName=DNS:other.invalid"
    sign("other", files.certificate, files.key, *signer, "-addext", other)
    async with run_tls_proxy(plain.port, files) as port:
        url = f"rediss://localhost:{port}?tls_ca={files.authority}"
        connection = await get_unavailable_message(url)
        assert "tls_verify=ca does not check the host name" in connection
        assert await read_port(ServerLocator(parse_url(f"{url}&tls_verify=ca"))) == plain.port


async def test_a_server_that_asks_for_our_certificate(
    plain: Server, certificates: Certificates
) -> None:
    async with run_tls_proxy(plain.port, certificates, mutual=True) as port:
        url = f"rediss://127.0.0.1:{port}?tls_ca={certificates.authority}"
        connection = await get_unavailable_message(url)
        assert (
            "asks for our certificate" in connection
        )  # or hangs up, with a guess: TLS 1.3 tells late
        assert "set tls_cert and tls_key" in connection
        pair = f"tls_cert={certificates.certificate}&tls_key={certificates.key}"
        assert await read_port(ServerLocator(parse_url(f"{url}&{pair}"))) == plain.port


async def test_tls_with_a_plaintext_server(plain: Server) -> None:
    connection = await get_unavailable_message(
        f"rediss://{plain.address}?tls_verify=none", timeout=0.5
    )
    assert "does not speak TLS" in connection or "does it speak TLS at all?" in connection
    async with run_fake_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as settings:
        assert "does not speak TLS" in await get_unavailable_message(f"rediss://{settings}")


@pytest.mark.parametrize("option", ["tls_ca", "tls_cert"])
async def test_files_that_cannot_be_read(plain: Server, option: str, tmp_path: Path) -> None:
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("hunter2")
    for file, why in ((tmp_path / "gone", "No such file"), (no_pem, "not a valid PEM file")):
        with pytest.raises(ConfigurationError) as caught:
            await ServerLocator(parse_url(f"rediss://{plain.address}?{option}={file}")).connect()
        assert str(caught.value).startswith(f"{option}: {file} cannot be used: {why}")
        assert "hunter2" not in str(caught.value)


# --- Sentinel -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trio() -> Iterator[SentinelTrio]:
    """With passwords for servers and Sentinels; tests that change it put it right again."""
    with SentinelTrio(valkey_binary(), password="pw", sentinel_password="spw") as trio:
        yield trio


def make_sentinel_url(trio: SentinelTrio, *, first: str = "", options: str = "") -> str:
    hosts = ",".join([*([first] if first else []), *(one.address for one in trio.sentinels)])
    return f"redis+sentinel://:pw@{hosts}/{trio.service}?sentinel_password=spw{options}"


async def test_sentinels_name_the_primary(trio: SentinelTrio) -> None:
    servers = ServerLocator(parse_url(make_sentinel_url(trio)))
    assert await read_port(servers) == trio.primary.port
    servers.invalidate()
    assert await read_port(servers) == trio.primary.port


async def test_a_sentinel_that_is_gone_or_silent_is_passed_over(trio: SentinelTrio) -> None:
    gone = f"127.0.0.1:{free_port()}"
    assert (
        await read_port(ServerLocator(parse_url(make_sentinel_url(trio, first=gone))))
        == trio.primary.port
    )
    async with Proxy(trio.sentinels[0].port) as proxy:
        proxy.hold_up()
        silent = f"127.0.0.1:{proxy.port}"
        servers = ServerLocator(parse_url(make_sentinel_url(trio, first=silent)), timeout=2)
        async with asyncio.timeout(2):
            assert await read_port(servers) == trio.primary.port
            servers.invalidate()
        async with asyncio.timeout(0.3):  # the one that answered is asked first now
            assert await read_port(servers) == trio.primary.port


async def test_after_a_failover_the_new_primary_is_found(trio: SentinelTrio) -> None:
    servers = ServerLocator(parse_url(make_sentinel_url(trio)))
    former = trio.primary
    assert await read_port(servers) == former.port
    primary = trio.fail_over()
    assert await read_port(servers) == primary.port  # nobody doubted: the old one was asked first
    former.start()
    trio.settle()
    assert await read_port(servers) == primary.port


async def test_without_a_primary_the_error_says_so(trio: SentinelTrio) -> None:
    servers = ServerLocator(parse_url(make_sentinel_url(trio)))
    former = trio.kill_primary()
    with pytest.raises(BackendUnavailable) as caught:
        await servers.connect()
    trio.wait_for_another(former)
    former.start()
    trio.settle()
    assert f"no server takes writes: nothing listens at {former.address}" in str(caught.value)


async def test_a_service_that_no_sentinel_knows(trio: SentinelTrio) -> None:
    connection = await get_configuration_message(
        make_sentinel_url(trio).replace(f"/{trio.service}", "/jbos")
    )
    assert "knows no service 'jbos'; it knows: nimburion" in connection


async def test_wrong_passwords_with_sentinel(trio: SentinelTrio) -> None:
    connection = await get_configuration_message(make_sentinel_url(trio).replace("spw", "hunter2"))
    assert "refuses this user or password" in connection
    connection = await get_configuration_message(
        make_sentinel_url(trio).replace(":pw@", ":hunter2@")
    )
    assert "refuses this user or password" in connection
    connection = await get_configuration_message(make_sentinel_url(trio).partition("?")[0])
    assert "asks for a password" in connection


async def test_sentinel_and_server_mixed_up(trio: SentinelTrio) -> None:
    sentinel = trio.sentinels[0].address
    connection = await get_configuration_message(f"redis://:spw@{sentinel}")
    assert f"is a Sentinel; use redis+sentinel://{sentinel}/SERVICE" in connection
    connection = await get_configuration_message(
        f"redis+sentinel://{trio.primary.address}/nimburion?sentinel_password=pw"
    )
    assert "is no Sentinel but a server; use redis://" in connection


async def test_no_sentinel_answers() -> None:
    one, two = free_port(), free_port()
    connection = await get_unavailable_message(
        f"redis+sentinel://127.0.0.1:{one},127.0.0.1:{two}/jobs"
    )
    assert f"nothing listens at 127.0.0.1:{one}" in connection
    assert f"nothing listens at 127.0.0.1:{two}" in connection


# --- Cluster --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes; a test that moves a slot moves it back."""
    with Cluster(valkey_binary()) as cluster:
        yield cluster


async def test_the_node_of_the_namespace_is_found_from_any_seed(cluster: Cluster) -> None:
    owner = cluster.find_owner(cluster.compute_slot("{nimburion}:x"))
    for node in cluster.nodes:
        assert (
            await read_port(ServerLocator(parse_url(f"redis+cluster://{node.address}")))
            == owner.port
        )


async def test_namespaces_lie_on_different_nodes(cluster: Cluster) -> None:
    for namespace in ("a", "b", "c", "d"):
        owner = cluster.find_owner(cluster.compute_slot(f"{{{namespace}}}:x"))
        servers = ServerLocator(parse_url(f"{cluster.url}?namespace={namespace}"))
        async with open_connection(servers) as connection:
            assert await ask(connection, "SET", f"{{{namespace}}}:x", "1") == b"OK"
            assert (await ask(connection, "CONFIG", "GET", "port"))[1] == b"%d" % owner.port


async def test_a_slot_that_moved(cluster: Cluster) -> None:
    slot = cluster.compute_slot("{nimburion}:x")
    owner = cluster.find_owner(slot)
    other = cluster.find_other(owner)
    servers, redirected = (
        ServerLocator(parse_url(cluster.url)),
        ServerLocator(parse_url(cluster.url)),
    )
    assert await read_port(servers) == await read_port(redirected) == owner.port
    cluster.move_slot(slot, other)
    servers.invalidate()
    redirected.redirect(Endpoint("", other.port))
    assert await read_port(servers) == await read_port(redirected) == other.port
    cluster.move_slot(slot, owner)


async def test_the_seed_may_go_once_the_others_are_known(redis_binary: Binary) -> None:
    with Cluster(redis_binary, "cluster-require-full-coverage no") as cluster:
        owner = cluster.find_owner(cluster.compute_slot("{nimburion}:x"))
        seed = cluster.find_other(owner)
        servers = ServerLocator(parse_url(f"redis+cluster://{seed.address}"))
        assert await read_port(servers) == owner.port
        seed.kill()
        servers.invalidate()
        assert await read_port(servers) == owner.port


async def test_a_cluster_that_has_no_node_for_the_slot(redis_binary: Binary) -> None:
    with Server(redis_binary, "cluster-enabled yes") as server:
        connection = await get_unavailable_message(f"redis+cluster://{server.address}")
    assert "names no node for slot" in connection


async def test_a_server_that_is_no_cluster(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        connection = await get_configuration_message(f"redis+cluster://{server.address}")
    assert "is not a node of a cluster; use redis://" in connection


async def test_no_node_answers() -> None:
    connection = await get_unavailable_message(f"redis+cluster://127.0.0.1:{free_port()}")
    assert "no server takes writes: nothing listens at" in connection


# --- timeouts and cancellation --------------------------------------------------------------------


async def test_a_connect_that_is_cancelled_leaves_no_connection(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        async with Proxy(server.port) as proxy:
            proxy.hold_up()
            task = asyncio.create_task(ServerLocator(parse_url(proxy.url), timeout=20).connect())
            await wait_until(lambda: bool(proxy.connections), "it connects")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.heal()
            await wait_until(
                lambda: len(server.ask("CLIENT", "LIST").splitlines()) == 1,
                "its connection is closed",
            )
