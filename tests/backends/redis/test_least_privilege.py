"""The rights that the production page gives are enough for everything, and each is needed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import redis

from nimburion.backends import open_backend
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.jobs import Processor
from tests.backends.redis.every_operation import TIMEOUT, greet, read_from, run_everything
from tests.docs.pages import read
from tests.house.tree import ROOT
from tests.servers import Binary, Cluster, RunningRedis, SentinelTrio, Server

PAGE = read(ROOT / "docs" / "how-to" / "redis-in-production.md")
LUA = ROOT / "src" / "nimburion" / "backends" / "redis" / "lua"
OPEN = "scripts/maintaining/open.lua"
USER, PASSWORD = "nimburion", "PASSWORD"
SOON = 0.5
"""Seconds after which a refused notification counts as not coming."""


# --- what the page gives --------------------------------------------------------------------------


def read_rights_from_page() -> list[str]:
    """The words of `ACL SETUSER nimburion …`, as a shell reads them."""
    blocks = [block.text for block in PAGE.blocks if "ACL SETUSER nimburion" in block.text]
    (text,) = blocks
    command = text.replace("\\\n", " ").splitlines()[0]
    words = shlex.split(command)
    assert words[:4] == ["redis-cli", "ACL", "SETUSER", USER]
    return words[4:]


def read_more_rights_from_page(what: str) -> list[str]:
    """The rights that the table adds for something."""
    text = PAGE.path.read_text(encoding="utf-8")
    (cell,) = re.findall(rf"^\| {re.escape(what)} \| ([^\n]*\+[^\n]*) \|$", text, re.MULTILINE)
    return re.findall(r"\+[a-z|\-]+", cell.replace("\\|", "|"))


RIGHTS = read_rights_from_page()
NEEDED = [word for word in RIGHTS if word[0] in "+~&"]
LEFT_OUT = ["config|get", "role", "client|setname", "subscribe"]
"""Of these the page says what is missing without them."""
COMMANDS_OF_THE_BACKEND = {"xread", "xrevrange"}
"""What scripts do not call, and no worker can do without."""
FRAME = [word for word in RIGHTS if word not in NEEDED]
"""Who it is, and that it may do nothing else."""


def list_data_servers(running: RunningRedis) -> list[Server]:
    """The servers whose users count."""
    if isinstance(running, Cluster):
        return running.nodes
    if isinstance(running, SentinelTrio):
        return running.data
    assert isinstance(running, Server)
    return [running]


def add_user_to_url(url: str) -> str:
    """The URL with which the user of the page comes in."""
    return url.replace("://", f"://{USER}:{PASSWORD}@", 1)


@contextmanager
def temporary_user(servers: Sequence[Server], words: Sequence[str]) -> Iterator[None]:
    """A user with these words, on each of the servers."""
    for server in servers:
        server.ask("ACL", "SETUSER", USER, *words)
        server.ask("ACL", "LOG", "RESET")
    try:
        yield
    finally:
        for server in servers:
            server.ask("ACL", "DELUSER", USER)


def read_denied_commands(servers: Iterable[Server]) -> set[str]:
    """What the user was refused, by the servers' own account."""
    return {
        entry["object"].lower()
        for server in servers
        for entry in read_from(server, redis.Redis.acl_log)
        if entry["username"] == USER
    }


# --- the tests ------------------------------------------------------------------------------------


async def test_the_rights_are_enough(redis_server: RunningRedis) -> None:
    servers, watchers = list_data_servers(redis_server), list_sentinels(redis_server)
    words = RIGHTS + (
        read_more_rights_from_page("a cluster") if isinstance(redis_server, Cluster) else []
    )
    with temporary_user(servers, words), temporary_user(watchers, read_sentinel_rights()):
        url = add_user_to_url(redis_server.url)
        await run_everything(f"{url}{make_sentinel_login(watchers)}", servers)
        assert read_denied_commands([*servers, *watchers]) == set()


def list_sentinels(running: RunningRedis) -> list[Server]:
    """The sentinels."""
    return running.sentinels if isinstance(running, SentinelTrio) else []


def read_sentinel_rights() -> list[str]:
    return ["reset", "on", f">{PASSWORD}", *read_more_rights_from_page("Sentinels that have users")]


def make_sentinel_login(watchers: Sequence[Server]) -> str:
    return f"?sentinel_username={USER}&sentinel_password={PASSWORD}" if watchers else ""


@pytest.mark.parametrize("left_out", [[], LEFT_OUT], ids=["all", "least"])
async def test_a_worker_has_enough_rights(valkey: Server, left_out: list[str]) -> None:
    valkey.empty()
    with temporary_user(
        [valkey], [word for word in RIGHTS if word.removeprefix("+") not in left_out]
    ):
        processor = Processor(open_backend(add_user_to_url(valkey.url)))
        processor.register(greet)
        async with processor:
            await processor.start()
            await processor.enqueue(greet.job("Ann"), id="Ann")
            assert await processor.wait("Ann", timeout=TIMEOUT) == "Hello Ann"
            assert (processor.health().error, processor.health().failures) == (None, {})
        assert read_denied_commands([valkey]) <= set(left_out)


async def test_each_right_is_needed(redis_binary: Binary) -> None:
    with Server(redis_binary, appendonly=True) as server:
        assert await find_needless(server, NEEDED, FRAME, server.url) == []


async def test_each_right_for_more_is_needed(redis_binary: Binary) -> None:
    durable = ["+waitaof"] if redis_binary.version >= (7, 2) else []
    assert read_more_rights_from_page("`durable_enqueue`") == ["+waitaof"]
    words = [*read_more_rights_from_page("a db other than 0"), *durable]
    with Server(redis_binary, "appendfsync always", appendonly=True) as server:
        url = server.url.removesuffix("/0") + "/1"
        more = f"{url}?durable_enqueue=true" if durable else url
        assert await find_needless(server, words, RIGHTS, more) == []


async def test_each_right_for_a_cluster_is_needed(redis_binary: Binary) -> None:
    with Cluster(redis_binary, nodes=1, node_timeout=15) as cluster:
        (node,) = cluster.nodes
        words = read_more_rights_from_page("a cluster")
        assert words == ["+cluster|slots", "+cluster|info"]
        assert await find_needless(node, words, RIGHTS, cluster.url) == []


async def find_needless(
    server: Server, words: Sequence[str], always: Sequence[str], url: str
) -> list[str]:
    """Those of the words without which everything works as well; with all of them it does."""
    with temporary_user([server], [*always, *words]):
        await run_everything(add_user_to_url(url), [server])
    return [word for word in words if not await is_needed(word, server, [*always, *words], url)]


async def is_needed(word: str, server: Server, words: Sequence[str], url: str) -> bool:
    """Whether something fails without this right, and for lack of it."""
    server.empty()
    server.ask("SCRIPT", "FLUSH")
    with temporary_user([server], [one for one in words if one != word]):
        try:
            await run_everything(add_user_to_url(url), [server], SOON)
        except (BackendError, ConfigurationError, AssertionError, TimeoutError):
            return names(word, read_denied_commands([server]))
        return False


def names(word: str, refused: set[str]) -> bool:
    """Whether a right is among what was refused: by command, subcommand, key or channel."""
    if word[0] == "+":
        return bool(refused & {word[1:], word[1:].partition("|")[0]})
    return any(one.startswith("{nimburion}:") for one in refused)


async def test_a_right_that_scripts_lack_is_missed_at_once(redis_binary: Binary) -> None:
    """Before a script stops in its middle: nothing can take back what it had written."""
    begun = [{"{nimburion}:counters", "{nimburion}:idle_worker:"}, {"{nimburion}:counters"}, set()]
    with Server(redis_binary) as server:
        for word in [
            *(f"+{command}" for command in find_commands(OPEN)),
            "&{nimburion}:notify",
            "&{nimburion}:idle_worker:*",
        ]:
            server.empty()
            with temporary_user([server], [one for one in RIGHTS if one != word]):
                with pytest.raises(ConfigurationError, match="this user may not"):
                    await open_and_close(add_user_to_url(server.url))
                assert names(word, read_denied_commands([server]))
            assert set(map(bytes.decode, server.ask("KEYS", "*"))) in begun


async def open_and_close(url: str) -> None:
    backend = open_backend(url)
    try:
        await backend.open()
    finally:
        await backend.close()


def find_commands(*scripts: str) -> set[str]:
    """Every command in these scripts: what stands in capitals, but for options."""
    texts = [(LUA / script).read_text(encoding="utf-8") for script in scripts]
    words = {word.lower() for text in texts for word in re.findall(r"'([A-Z]{3,})'", text)}
    return words - {"limit", "withscores", "count", "streams", "maxlen"}


def test_opening_tries_every_command_of_every_script() -> None:
    others = sorted({str(file.relative_to(LUA)) for file in LUA.rglob("*.lua")} - {OPEN})
    assert find_commands(OPEN) == find_commands(*others) | {
        "hsetnx",
        *COMMANDS_OF_THE_BACKEND,
    }


def test_the_page_lists_every_command_used() -> None:
    given = {word[1:] for word in NEEDED if word[0] == "+"}
    assert given == find_commands(OPEN) | {"evalsha", "eval", "info", "ping"} | {*LEFT_OUT}


def test_the_page_explains_optional_rights() -> None:
    text = PAGE.path.read_text(encoding="utf-8").split("| without |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([^`]*)`", text.replace("\\|", "|"), re.MULTILINE) == LEFT_OUT
