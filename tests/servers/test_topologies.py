"""A cluster moves its slots, sentinels put a replica in place of a dead primary, TLS is checked."""

from __future__ import annotations

from typing import TypeVar

import pytest
import redis
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError
from redis.sentinel import Sentinel

from tests.servers.binaries import Binary
from tests.servers.cluster import Cluster
from tests.servers.sentinel import SentinelTrio, read_role
from tests.servers.server import Server
from tests.servers.server_kinds import RunningRedis

Kind = TypeVar("Kind", Server, Cluster, SentinelTrio)


def only_on(*kinds: str) -> pytest.MarkDecorator:
    """Run on these kinds, as far as the run asks for them."""
    return pytest.mark.parametrize("redis_server", kinds, indirect=True)


# --- cluster ----------------------------------------------------------------------------------


@only_on("valkey-cluster", "redis-cluster")
def test_a_cluster_is_whole(redis_server: RunningRedis) -> None:
    cluster = narrow_type(Cluster, redis_server)
    with make_cluster_client(cluster) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
        assert client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 100
    assert all(node.ask("DBSIZE") > 10 for node in cluster.nodes)


@only_on("valkey-cluster", "redis-cluster")
def test_a_slot_moves_with_its_keys(redis_server: RunningRedis) -> None:
    cluster = narrow_type(Cluster, redis_server)
    slot = cluster.compute_slot("{here}")
    source = cluster.find_owner(slot)
    for number in range(250):
        source.ask("SET", f"{{here}}{number}", number)
    target = cluster.find_other(source)
    assert cluster.move_slot(slot, target) == 250
    assert cluster.find_owner(slot) is target
    assert (source.ask("DBSIZE"), target.ask("DBSIZE")) == (0, 250)
    with make_cluster_client(cluster) as client:
        assert client.get("{here}249") == b"249"


@only_on("valkey-cluster", "redis-cluster")
def test_a_slot_moves_step_by_step(redis_server: RunningRedis) -> None:
    cluster = narrow_type(Cluster, redis_server)
    slot = cluster.compute_slot("{step}")
    source = cluster.find_owner(slot)
    target = cluster.find_other(source)
    source.ask("MSET", "{step}1", "a", "{step}2", "b")
    cluster.open_slot(slot, source, target)
    elsewhere = rf"{slot} 127\.0\.0\.1:{target.port}$"
    with pytest.raises(redis.ResponseError, match=elsewhere):
        source.ask("GET", "{step}new")
    assert source.ask("GET", "{step}1") == b"a"
    assert cluster.move_keys(slot, source, target, count=1) == 1
    with pytest.raises(redis.ResponseError, match=r"TRYAGAIN|Multiple keys"):
        source.ask("MGET", "{step}1", "{step}2")
    assert cluster.move_keys(slot, source, target) == 1
    cluster.assign_slot(slot, source, target)
    with pytest.raises(redis.ResponseError, match=elsewhere):
        source.ask("GET", "{step}1")
    assert target.ask("GET", "{step}1") == b"a"


def test_a_cluster_node_that_was_killed_comes_back(redis_binary: Binary) -> None:
    with Cluster(redis_binary, appendonly=True) as cluster:
        slot = cluster.compute_slot("kept")
        node = cluster.find_owner(slot)
        node.ask("SET", "kept", "yes")
        node.kill()
        node.start()
        cluster.settle()
        assert node.ask("GET", "kept") == b"yes"
    assert [one.folder for one in cluster.nodes if one.runs or one.folder.exists()] == []


# --- Sentinel -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("redis_binary", ["valkey", "redis"], indirect=True)  # 6.2 takes 30 s
def test_a_replica_takes_the_place_of_a_killed_primary(redis_binary: Binary) -> None:
    with SentinelTrio(redis_binary, replicas=2) as trio:
        first = trio.primary
        trio.ask("SET", "kept", "yes")
        assert trio.ask("WAIT", 2, 5000) == 2
        second = trio.fail_over()
        assert second is not first
        assert second.ask("GET", "kept") == b"yes"
        second.ask("SET", "written", "yes")
        first.start()
        trio.settle()
        assert (trio.primary, read_role(first)) == (second, "slave")
    servers = [*trio.data, *trio.sentinels]
    assert [one.folder for one in servers if one.runs or one.folder.exists()] == []


@only_on("valkey-sentinel", "redis-sentinel")
def test_sentinels_lead_to_the_primary(redis_server: RunningRedis) -> None:
    trio = narrow_type(SentinelTrio, redis_server)
    client = Sentinel([("127.0.0.1", one.port) for one in trio.sentinels])  # type: ignore[no-untyped-call]
    found = client.discover_master(trio.service)  # type: ignore[no-untyped-call]
    assert found == ("127.0.0.1", trio.primary.port)
    for one in client.sentinels:
        one.close()


def test_sentinels_and_servers_may_ask_for_passwords(redis_binary: Binary) -> None:
    with SentinelTrio(redis_binary, password="data", sentinel_password="watch") as trio:
        assert trio.ask("PING") is True
        for server, wrong in ((trio.primary, None), (trio.sentinels[0], "data")):
            with server.client(password=wrong) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()


# --- TLS ----------------------------------------------------------------------------------------


@only_on("redis-tls")
def test_tls_is_the_only_way_in(redis_server: RunningRedis) -> None:
    server = narrow_type(Server, redis_server)
    assert server.certificates is not None
    with server.client(ssl=False) as plain, pytest.raises(redis.ConnectionError):
        plain.ping()


@only_on("redis-tls")
def test_the_certificate_is_checked_against_the_authority(redis_server: RunningRedis) -> None:
    server = narrow_type(Server, redis_server)
    with (
        server.client() as knows,
        server.client(ssl_ca_certs=None) as untrusting,
    ):
        assert knows.ping() is True
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            untrusting.ping()


# --- what they share ----------------------------------------------------------------------------


def narrow_type(kind: type[Kind], server: RunningRedis) -> Kind:
    """The server, known as what it is."""
    assert isinstance(server, kind)
    return server


def make_cluster_client(cluster: Cluster) -> RedisCluster:
    """A client that finds its way in the cluster."""
    return RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
