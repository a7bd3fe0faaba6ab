"""Errors name the place, the key path and what is allowed; they hold no secret."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimburion import config
from nimburion.config import Config, ConfigurationError
from nimburion.config.environment import read_environment
from nimburion.config.schema import JOBS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(text: str | bytes) -> str:
    """The message that refuses this file."""
    content = text.encode() if isinstance(text, str) else text
    Path("c.yaml").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        config.load("c.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


FROM_1 = "a whole number from 1 to 10000"
SECONDS = "seconds, or a text like 30s, 5m, 1h30m, 90d"
ROMA = (
    "2: scheduler.timezone: expected an IANA time zone, found 'Europe/Roma' "
    "(did you mean 'Europe/Rome'?)"
)
EXPOSED = (
    "0.0.0.0 can be reached from other hosts, and there is no token: anyone could run and delete "
    "jobs. Add under server: `tokens: [{name: ops, rights: [read, operate], variable: "
    "OPS_TOKEN}]`, or set `host: 127.0.0.1`"
)
WANTED_RIGHTS = (
    "a list, each one of read, payloads, stacks, operate, admin, "
    "found a list (item 1 is none of these)"
)
NOT_READ = (
    "not in this version yet; remove the section "
    "(this version reads: jobs, scheduler, server, telemetry)"
)
OVERLAPS = "allow, skip, queue_one, cancel_previous"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs:\n  concurency: 3",
         "2: jobs.concurency: no such setting; did you mean concurrency?"),
        ("jobs:\n  concurrency: many", f"2: jobs.concurrency: expected {FROM_1}, found 'many'"),
        ("jobs: {concurrency: 0}", f"1: jobs.concurrency: expected {FROM_1}, found 0"),
        ("jobs: {concurrency: true}", f"1: jobs.concurrency: expected {FROM_1}, found true"),
        ("jobs: {concurrency: '3'}",
         f"1: jobs.concurrency: expected {FROM_1}, found '3' (without quotes)"),
        ("jobs: {concurrency: }", f"1: jobs.concurrency: expected {FROM_1}, found nothing"),
        ("jobs: {concurrency: [1]}", f"1: jobs.concurrency: expected {FROM_1}, found a list"),
        ("jobs: {grace: 1:30}",
         f"1: jobs.grace: expected {SECONDS}, found '1:30'"),
        ("jobs: {grace: -1}",
         f"1: jobs.grace: expected {SECONDS}, found -1 (at least 0 s)"),
        ("jobs: {grace: .inf}",
         f"1: jobs.grace: expected {SECONDS}, found .inf"),
        ("jobs: {backend: postgresql}",
         "1: jobs.backend: expected one of memory, sqlite, redis, postgres, found 'postgresql'"),
        ("jobs:\n  queues:\n    - name: a\n      prio: 1",
         "4: jobs.queues[0].prio: no such setting; did you mean priority?"),
        ("jobs:\n  queues:\n    - name: a\n    - name: a",
         "4: jobs.queues[1].name: 'a' occurs twice in this list"),
        ("jobs:\n  queues:\n    - priority: 1", "3: jobs.queues[0]: name is missing"),
        ("jobs:\n  overrides:\n    - name: a\n      rate: fast",
         ("4: jobs.overrides[0].rate: expected a rate like 100/min, 5/s or 1000/2h, or none, "
          "found 'fast'")),
        ("jobs:\n  overrides:\n    - name: a\n      concurrency: 0",
         ("4: jobs.overrides[0].concurrency: expected a whole number from 1 to 1000000, or none, "
          "found 0")),
        ("jobs:\n  keyed_limits:\n    - {name: a, key: b}",
         ("3: jobs.keyed_limits[0].key: no such setting; known here: name, concurrency, rate, "
          "burst")),
        ("jobs: {queues: [{name: 'a b'}]}",
         "1: jobs.queues[0].name: expected 1-128 characters of A-Z a-z 0-9 _ . : -, found 'a b'"),
        ("jobs: {queues: {a: 1}}",
         ("1: jobs.queues: expected a list of maps of name, priority, concurrency, "
          "keep_arguments, fairness; found a map")),
        ("jobs: 3", f"1: jobs: expected a map of {', '.join(JOBS.keys)}; found a number"),
        ("[1]", "1: expected a map of jobs, scheduler, server, telemetry; found a list"),
        ("jobs: {sizes: {payload: 1TB}}",
         "1: jobs.sizes.payload: expected bytes, or a text like 256KiB, 1MiB, found '1TB'"),
        ("concurrency: 3", "1: concurrency: no such section; did you mean jobs.concurrency?"),
        ("job: {}", "1: job: no such setting; did you mean jobs?"),
        ("management: {}",
         f"1: management: {NOT_READ}"),
        ("server: {host: 0.0.0.0, port: 80}",
         f"1: server.host: {EXPOSED}"),
        ("server: {tokens: [{name: a, rights: [reed], file: b}]}",
         f"1: server.tokens[0].rights: expected {WANTED_RIGHTS}"),
        ("server: {tokens: [{name: a, rights: [read]}]}",
         "1: server.tokens[0]: name either the `file` or the `variable` of the token"),
        ("scheduler: {tasks: [{name: a, cron: '@daily'}]}",
         "1: scheduler.tasks[0]: job_name is missing"),
        ("scheduler: {tasks: [{name: a, cron: '@daily', job_name: b, payload: '[]'}]}",
         "1: scheduler.tasks[0].payload: expected a map, or a JSON object as a text, found '[]'"),
        ("scheduler:\n  timezone: Europe/Roma",
         ROMA),
        ("scheduler: {tasks: [{name: a, cron: '@daily', job_name: b, overlap: x}]}",
         f"1: scheduler.tasks[0].overlap: expected one of {OVERLAPS}, found 'x'"),
        ("jobs: {concurrency: 1}\njobs: {}",
         "2: jobs: this key is repeated; the first is in line 1"),
        ("jobs: &a {}\n",
         "1: jobs: anchors (&) and aliases (*) are not allowed; repeat it"),
        ("jobs: *a\n", "1: jobs: anchors (&) and aliases (*) are not allowed; repeat it"),
        ("jobs: !!map {}", "1: jobs: tags (!) are not allowed; write the plain value"),
        ("jobs: !!python/object/apply:os.system [ls]",
         "1: jobs: tags (!) are not allowed; write the plain value"),
        ("? [1]\n: 2", "1: a key must be a word, not a list or a map"),
        ("jobs: {}\n---\njobs: {}", "2: there is a second document; only one is allowed"),
        ("jobs:\n\t- x", "2: invalid YAML: found character that cannot start any token"),
        ("jobs: \x07", "1: the character U+0007 is not allowed in YAML"),
        ("a: " + "[" * 40 + "]" * 40, "1: nested deeper than 32 levels"),
        ("jobs: {url: 'redis://h', redis: {addr: h}}",
         "1: jobs.redis: jobs.url names the backend already; keep one of them"),
        ("jobs: {url: 'redis://h', backend: sqlite}",
         "1: jobs.backend: sqlite, but jobs.url names a backend of scheme 'redis'; keep one"),
        ("jobs:\n  redis: {}\n  sqlite: {}",
         "2: jobs.redis: two backends, sqlite and redis: choose by jobs.backend"),
        ("jobs: {redis: {addr: a, url: b}}",
         "1: jobs.redis.addr: url sets this already; keep one of them"),
        ("jobs: {redis: {url: 'redis://a', password: b}}",
         "1: jobs.redis.password: url sets this already; keep one of them"),
        ("jobs: {redis: {addr: 'a:b'}}",
         "1: jobs.redis.addr: expected host:port, like localhost:6379"),
        ("jobs: {redis: {url: 'redis://a', tls: true}}",
         "1: jobs.redis.tls: url sets this already; keep one of them"),
        ("jobs: {redis: {url: 'redis://a?timeout=3', timeout: 3}}",
         "1: jobs.redis.timeout: url sets this already; keep one of them"),
        ("jobs: {redis: {tls_ca: ca.pem}}",
         "1: jobs.redis.tls_ca: is for TLS; set tls: true too"),
        ("jobs: {redis: {tls: true, tls_verify: maybe}}",
         "1: jobs.redis.tls_verify: expected one of full, ca, none, found 'maybe'"),
        ("jobs: {redis: {namespace: '{x}'}}",
         "1: jobs.redis.namespace: expected 1-64 characters of A-Z a-z 0-9 _ . : -, found '{x}'"),
        ("jobs: {redis: {timeout: 2h}}",
         f"1: jobs.redis.timeout: expected {SECONDS}, found '2h' (at most 3600 s)"),
        ("jobs: {redis: {namspace: x}}",
         "1: jobs.redis.namspace: no such setting; did you mean namespace?"),
        ("jobs: {postgres: {prefix: a_}}",
         "1: jobs.postgres.prefix: table names have no prefix; choose another postgres.schema"),
        ("jobs: {sqlite: {url: 'redis://x'}}",
         "1: jobs.sqlite.url: expected a URL that begins with sqlite://"),
        ("jobs: {processes: 0}",
         "1: jobs.processes: expected a whole number from 1 to 1000, found 0"),
    ],
)  # fmt: skip
def test_the_message_says_where_what_and_what_else(text: str, message: str) -> None:
    assert refused(text) == f"c.yaml:{message}"


@pytest.mark.parametrize("setting", ["password", "url"])
@pytest.mark.parametrize("value", ['"${SECRET_hunter2}"', "[hunter2]", '"hunter2\\x07"'])
def test_a_secret_is_never_shown(setting: str, value: str) -> None:
    message = refused(f"jobs: {{redis: {{{setting}: {value}}}}}")
    assert "hunter2" not in message
    assert message.startswith(f"c.yaml:1: jobs.redis.{setting}: expected a text, found a ")


def test_secrets_in_a_wrong_url_are_not_shown() -> None:
    assert "hunter2" not in refused("jobs: {url: 'redis://u:hunter2@h', backend: sqlite}")
    assert "hunter2" not in refused("jobs: {sqlite: {url: 'redis://u:hunter2@h'}}")
    assert "hunter2" not in refused("jobs: {redis: hunter2}")
    assert "hunter2" not in refused("jobs: {redis: {addr: 'u:hunter2@h'}}")
    assert "hunter2" not in refused("jobs: {url: 'hunter2'}")


def test_variables_are_not_expanded_and_it_says_so() -> None:
    for text in ("${PASSWORD}", "$PASSWORD"):
        assert "variables are not expanded" in refused(f"jobs: {{redis: {{password: '{text}'}}}}")


def test_a_password_in_a_variable_may_begin_with_a_dollar_sign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIMBURION_JOBS__REDIS__PASSWORD", "$ecret")
    assert config.load().jobs.url == "redis://:%24ecret@localhost:6379/0"
    monkeypatch.setenv("NIMBURION_JOBS__REDIS__PASSWORD", "${SECRET}")
    with pytest.raises(ConfigurationError, match="not expanded here; write the value itself"):
        config.load()


def test_a_file_that_is_too_large_is_refused() -> None:
    assert refused("#" * (256 * 1024 + 1)) == "c.yaml: larger than 256 KiB"


def test_a_file_that_is_not_utf8_is_refused() -> None:
    assert refused(b"jobs:\n  owner: \xff\n") == "c.yaml:2: not UTF-8"


def test_a_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^no\.yaml: cannot be read: No such file"):
        config.load("no.yaml")
    with pytest.raises(ConfigurationError, match=r"^\.: cannot be read: Is a directory"):
        config.load(".")
    monkeypatch.setenv("NIMBURION_CONFIG", "gone.yaml")
    with pytest.raises(ConfigurationError, match=r"^gone\.yaml: cannot be read"):
        config.load()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JOBS__CONCURENCY", "1", "jobs.concurency: no such setting; did you mean concurrency?"),
        ("JOB__CONCURRENCY", "1", "job.concurrency: no such setting; did you mean jobs?"),
        ("JOBS__REDIS__ADR", "1", "jobs.redis.adr: no such setting; did you mean addr?"),
        ("JOBS__POSTGRES__PREFIX", "a_",
         "jobs.postgres.prefix: table names have no prefix; choose another postgres.schema"),
        ("JOBS__GRACE__X", "1",
         "jobs.grace.x: no such setting; jobs.grace has no parts of its own"),
        ("JOBS__MAX_LOST", "0",
         "jobs.max_lost: expected a whole number from 1 to 1000000, found 0"),
        ("JOBS__QUEUES", "a,b",
         ("jobs.queues: expected a list of maps of name, priority, concurrency, "
          "keep_arguments, fairness; found a text")),
        ("JOBS__QUEUES", "[{name: a}, {name: a}]",
         "jobs.queues[1].name: 'a' occurs twice in this list"),
        ("JOBS__QUEUES", "[", "jobs.queues: invalid YAML: did not find expected node content"),
        ("JOBS__OWNER", "\udcff", "jobs.owner: not UTF-8"),
        ("JOBS_CONCURRENCY", "1",
         "is not read; NIMBURION_JOBS_CONCURRENCY must be spelled NIMBURION_JOBS__CONCURRENCY"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_refused_by_name(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"NIMBURION_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        config.load()
    assert str(caught.value) == f"NIMBURION_{variable}: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": 1}, "concurrency: no such section; did you mean jobs.concurrency?"),
        ({"jobs": {"concurrency": "1"}},
         f"jobs.concurrency: expected {FROM_1}, found '1' (without quotes)"),
        ({"jobs": {"grace": object()}}, "jobs.grace: a object cannot be a setting"),
        ({"jobs": {"grace": 10**400}}, "jobs.grace: expected seconds, or a text like"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(**arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"load(): {message}")


def test_nothing_wrong_is_hidden_by_what_lies_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBURION_JOBS__CONCURRENCY", "3")
    assert "found 'many'" in refused("jobs: {concurrency: many}")


SCALARS = st.one_of(
    st.sampled_from(["none", "30s", "1h30m", "9" * 5000, "1e999", ".inf", "0x1", "sqlite:///x.db"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
)
WORDS = st.sampled_from(
    [*JOBS.keys, "jobs", "name", "addr", "path", "password", "[", "]", "{", "}", ": ", ":\n  ",
     ", ", "\n", "- ", "&a ", "*a", "!!str ", "'", '"', "\\", "\\0", "%YAML 1.2\n", "---\n",
     "...\n", "? ", "<<", "|\n", ">\n", "#", "\t", "\0", "\x85", "\u2028", "\ufeff"]
)  # fmt: skip
SETTINGS = st.dictionaries(st.sampled_from(list(JOBS.keys)), SCALARS, max_size=4)
TEXTS = st.one_of(
    st.text(max_size=200).map(str.encode),
    st.binary(max_size=60),
    st.lists(st.one_of(WORDS, SCALARS), max_size=25).map("".join).map(str.encode),
    SETTINGS.map(lambda pairs: "".join(f"\n  {k}: {v}" for k, v in pairs.items()))
    .map("jobs:{}".format)
    .map(str.encode),
)


@given(TEXTS)
def test_any_file_gives_a_config_or_a_refusal(content: bytes) -> None:
    path = Path("any.yaml")
    path.write_bytes(content)
    outcome = config_or_refusal(path)
    assert isinstance(outcome, Config) or outcome.startswith("any.yaml")


def config_or_refusal(path: Path) -> Config | str:
    """What comes of a file; any exception but `ConfigurationError` fails the test."""
    try:
        return config.load(path)
    except ConfigurationError as error:
        return str(error)


@given(st.lists(st.sampled_from([key.upper() for key in JOBS.keys]), min_size=1), SCALARS)
def test_any_variable_gives_a_tree_or_a_refusal(steps: list[str], value: str) -> None:
    variable = "NIMBURION_JOBS__" + "__".join(steps)
    with suppress(ConfigurationError):
        assert read_environment({variable: value}) is not None


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_before_it_recurses(opening: str) -> None:
    assert re.search("nested deeper|nesting depth", refused(opening * 20_000))
