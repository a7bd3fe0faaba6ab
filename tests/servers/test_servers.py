"""Each kind of server starts, answers, falls and gets up as it says, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from nimburion.backends.redis.url import parse_url
from tests.servers.binaries import Binary, ServerNotFound, redis62_binary, valkey_binary
from tests.servers.cluster import Cluster
from tests.servers.sentinel import SentinelTrio
from tests.servers.server import Server, ServerFailed
from tests.servers.server_kinds import REDIS_KINDS, RunningRedis, read_requested_kinds


def is_there(pid: int) -> bool:
    """Whether a process exists."""
    return Path("/proc", str(pid)).exists()


def read_setting(server: Server, name: str) -> str:
    """A setting as the server has it."""
    reply: list[bytes] = server.ask("CONFIG", "GET", name)
    return reply[1].decode()


def test_each_kind_answers_and_is_empty(redis_server: RunningRedis) -> None:
    assert redis_server.ask("PING") is True
    assert redis_server.ask("DBSIZE") == 0


def test_the_url_of_each_kind_parses(redis_server: RunningRedis) -> None:
    shape = {Server: "single", Cluster: "cluster", SentinelTrio: "sentinel"}[type(redis_server)]
    address = parse_url(redis_server.url)
    assert (address.kind, bool(address.tls)) == (shape, redis_server.name.endswith("TLS"))


def test_the_url_leads_to_it(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping() is True
        assert client.info("server")["process_id"] == server.pid


def test_its_unix_socket_leads_to_it(redis_binary: Binary) -> None:
    with (
        Server(redis_binary) as server,
        redis.Redis(unix_socket_path=str(server.socket)) as client,
    ):
        assert client.info("server")["process_id"] == server.pid


def test_a_closed_server_leaves_nothing(redis_binary: Binary) -> None:
    with Server(redis_binary, appendonly=True) as server:
        assert is_there(server.pid)
        assert list(server.folder.iterdir()) != []
    assert not is_there(server.pid)
    assert not server.folder.exists()


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_the_append_only_file_outlives_the_process(redis_binary: Binary, end: object) -> None:
    with Server(redis_binary, appendonly=True) as server:
        port, pid = server.port, server.pid
        server.ask("SET", "kept", "yes")
        assert callable(end)
        end(server)
        assert not server.runs
        server.start()
        assert server.pid != pid
        assert (server.port, server.ask("GET", "kept")) == (port, b"yes")


def test_without_the_file_a_restart_empties_it(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.ask("SET", "kept", "no")
        server.restart()
        assert server.ask("DBSIZE") == 0


def test_a_paused_server_keeps_one_waiting(redis_binary: Binary) -> None:
    with Server(redis_binary) as server, server.client() as client:
        client.ping()
        server.pause()
        late = redis.Redis.from_url(server.url, socket_timeout=0.1, retry=None)
        with late, pytest.raises(redis.TimeoutError):
            late.ping()
        server.resume()
        assert client.ping() is True


def test_a_paused_server_can_be_closed(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        server.pause()
    assert not is_there(server.pid)


def test_settings_are_applied(redis_binary: Binary) -> None:
    with Server(redis_binary, "maxmemory-policy allkeys-lru", maxmemory="64mb") as server:
        assert read_setting(server, "maxmemory") == str(64 * 1024 * 1024)
        assert read_setting(server, "maxmemory-policy") == "allkeys-lru"
        assert (read_setting(server, "appendonly"), read_setting(server, "save")) == ("no", "")
    with Server(redis_binary, appendonly=True) as server:
        assert read_setting(server, "appendonly") == "yes"


def test_a_password_is_asked_for(redis_binary: Binary) -> None:
    with Server(redis_binary, password="open-sesame") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping() is True
        with server.client(password=None) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_user_may_what_it_may(redis_binary: Binary) -> None:
    users = ["default off", "reader on >pw ~* +ping +get"]
    with (
        Server(redis_binary, users=users) as server,
        redis.Redis.from_url(server.url_for("reader", "pw")) as client,
    ):
        assert client.ping() is True
        with pytest.raises(NoPermissionError):
            client.set("a", "b")


def test_a_setting_that_does_not_exist_shows_the_log(redis_binary: Binary) -> None:
    server = Server(redis_binary, "no-such-setting yes")
    with pytest.raises(ServerFailed, match=r"(?s)ended at its start.*no-such-setting"), server:
        pass
    assert not server.folder.exists()


def test_a_taken_port_is_left_to_its_owner(redis_binary: Binary) -> None:
    with Server(redis_binary) as first:
        second = Server(redis_binary)
        second.port = first.port
        with second:
            assert second.port != first.port
            assert second.ask("PING") is True
            assert first.ask("PING") is True


def test_debug_is_allowed(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        assert server.ask("DEBUG", "SLEEP", "0") == b"OK"


def test_the_wheel_speaks_no_tls() -> None:
    server = Server(valkey_binary(), tls=True)
    with pytest.raises(ServerFailed, match="tls"), server:
        pass


# --- what a run asks for -----------------------------------------------------------------------


def test_wheels_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NB_TEST_SERVERS", raising=False)
    assert {kind.partition("-")[0] for kind in read_requested_kinds()} == {"valkey", "postgres"}


def test_the_variable_selects_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NB_TEST_SERVERS", "valkey-cluster,valkey")
    assert read_requested_kinds() == ("valkey", "valkey-cluster")


def test_a_kind_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NB_TEST_SERVERS", "valkey,garnet")
    with pytest.raises(ValueError, match=r"no kind garnet; there are valkey, .*redis62"):
        read_requested_kinds()


@pytest.mark.parametrize("kind", [kind for kind in REDIS_KINDS if not kind.startswith("valkey")])
def test_a_server_that_is_not_here_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NB_TEST_SERVERS", kind)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("NB_TEST_REDIS", raising=False)
    monkeypatch.delenv("NB_TEST_REDIS62", raising=False)
    with pytest.raises(ServerNotFound, match="redis-server"):
        read_requested_kinds()


def test_a_machine_without_a_wheel_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NB_TEST_SERVERS", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(ServerNotFound, match=r"s390x.*NB_TEST_SERVERS=redis"):
        read_requested_kinds()


def test_a_program_that_is_no_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NB_TEST_REDIS62", "/bin/sh")
    with pytest.raises(ServerNotFound, match="/bin/sh"):
        redis62_binary()
