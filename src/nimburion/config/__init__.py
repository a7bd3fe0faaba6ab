"""The loader of the configuration: a file, then the environment, then arguments.

>>> from nimburion import config
>>> config.load(jobs={"url": "memory://", "grace": "1m30s"}).jobs.grace
90.0
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from nimburion.config.access_tokens import read_server_settings
from nimburion.config.backend_url import (
    drop_superseded,
    make_absolute,
    make_absolute_path,
    make_backend_url,
)
from nimburion.config.environment import FILE_VARIABLE, read_arguments, read_environment
from nimburion.config.schema import BACKEND_KEYS, JOBS, ROOT, TELEMETRY, make_settings, read_section
from nimburion.config.tree import Place, Written, get_part, make_refusal, nest, overlay
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import (
    BatchSettings,
    Config,
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    QueueSettings,
    Recycle,
    SchedulerSettings,
    ServerSettings,
    Settings,
    TaskSettings,
    TelemetrySettings,
    TenantSettings,
    TokenSettings,
)

__all__ = [
    "BatchSettings",
    "Config",
    "ConfigurationError",
    "JobSettings",
    "KeyedLimitSettings",
    "QueueLimitSettings",
    "QueueSettings",
    "Recycle",
    "SchedulerSettings",
    "ServerSettings",
    "Settings",
    "TaskSettings",
    "TelemetrySettings",
    "TenantSettings",
    "TokenSettings",
    "load",
    "load_layers",
    "load_sections",
]

FILE = "config.yaml"
MAX_FILE_SIZE = 256 * 1024


def load(path: str | os.PathLike[str] | None = None, **arguments: object) -> Config:
    """Load the configuration from a file, the environment and `arguments`. Later sources win.

    The file is `path`, else the file that `NIMBURION_CONFIG` names, else `config.yaml` in the
    working directory if it exists. Without any source, the defaults apply: SQLite in `nimburion.db`
    in the working directory. `arguments` are complete or partial sections: `jobs={"concurrency":
    20}`.

    Raises:
        ConfigurationError: a setting is wrong. The message names its place (file and line,
            variable or argument) and the allowed values. An unknown key is an error too.
    """
    return load_layers(path, arguments)


def load_layers(path: str | os.PathLike[str] | None, *layers: Mapping[str, object]) -> Config:
    """Load the configuration as `load` does, with several layers of arguments. Later layers win.

    For frameworks: the settings of an application are one layer, and the options of a command are
    another one above it.
    """
    file = find_file(path, os.environ)
    return merge_layers(
        (
            read_file(file) if file is not None else None,
            read_environment(os.environ),
            *map(read_arguments, layers),
        ),
        make_absolute_path(file) if file is not None else None,
    )


def load_sections(*layers: Mapping[str, object], source: str, **arguments: object) -> Config:
    """Load the configuration from sections in Python, then the environment, then `arguments`.

    For frameworks that have settings of their own: no file is read. Later layers win. `source` is
    the name of the setting, for messages. The errors are those of `load`.
    """
    written = [read_arguments(layer, Place(source)) for layer in layers]
    return merge_layers((*written, read_environment(os.environ), read_arguments(arguments)), source)


def merge_layers(layers: Iterable[Written | None], source: str | None) -> Config:
    """Return the configuration of the layers; later ones win."""
    tree = Written({}, Place("defaults"))
    for layer in layers:
        tree = merge_layer(tree, layer)
    return Config(
        jobs=read_jobs_settings(tree),
        scheduler=read_scheduler_settings(tree),
        server=read_server_settings(tree),
        telemetry=read_telemetry_settings(tree),
        source=source,
    )


def find_file(path: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path | None:
    """Return the file to read; None if none was named and there is no `config.yaml`."""
    if path is not None:
        return Path(path)
    named = environment.get(FILE_VARIABLE)
    if named:
        return Path(named)
    usual = Path(FILE)
    return usual if usual.exists() else None


def read_file(file: Path) -> Written:
    """Return the tree of a file, which holds at most 256 KiB of UTF-8."""
    from nimburion.config.yaml_reader import read_yaml  # imports PyYAML, so only if needed

    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise make_refusal(Place(str(file)), (), f"cannot be read: {reason}") from None
    if len(content) > MAX_FILE_SIZE:
        raise make_refusal(Place(str(file)), (), f"larger than {MAX_FILE_SIZE // 1024} KiB")
    return read_yaml(decode_text(content, str(file)), str(file))


def decode_text(content: bytes, source: str) -> str:
    """Return the text of a file: UTF-8, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise make_refusal(Place(source, line), (), "not UTF-8") from None


def merge_layer(lower: Written, upper: Written | None) -> Written:
    """Return one layer over another. A backend in the upper layer replaces that of the lower
    one.

    Each layer must be valid by itself, so that an upper layer never hides an error.
    """
    if upper is None or not read_section(ROOT, upper, ()):
        return lower
    jobs = drop_superseded(get_part(lower, "jobs"), get_part(upper, "jobs"))
    if jobs is not None and isinstance(lower.value, dict):
        lower = Written({**lower.value, "jobs": jobs}, lower.place)
    return overlay(lower, upper)


def read_jobs_settings(tree: Written) -> Settings:
    """Return the section `jobs`, validated and complete."""
    read = read_section(ROOT, tree, ())
    written = get_part(tree, "jobs") or nest((), Written({}, tree.place))
    values = dict(cast("dict[str, object]", read.get("jobs", {})))
    given = {key: values.pop(key) for key in BACKEND_KEYS if key in values}
    url = make_backend_url(written, given, ("jobs",))
    made = {key: make_settings(JOBS.keys[key], value) for key, value in values.items()}
    made["outbox_url"] = make_absolute(str(made.get("outbox_url", "")))
    return Settings(**made, url=url)


def read_scheduler_settings(tree: Written) -> SchedulerSettings:
    """Return the section `scheduler`, validated except for its cron expressions."""
    read = read_section(ROOT, tree, ())
    values = dict(cast("dict[str, object]", read.get("scheduler", {})))
    tasks = cast("list[dict[str, object]]", values.pop("tasks", []))
    places = list_task_places(tree)
    return SchedulerSettings(
        **values,  # type: ignore[arg-type]
        tasks=tuple(
            TaskSettings(**task, place=place)  # type: ignore[arg-type]
            for task, place in zip(tasks, places, strict=True)
        ),
    )


def read_telemetry_settings(tree: Written) -> TelemetrySettings:
    """Return the section `telemetry`, validated."""
    read = read_section(ROOT, tree, ())
    settings: TelemetrySettings = make_settings(TELEMETRY, read.get("telemetry", {}))
    return settings


def list_task_places(tree: Written) -> list[str]:
    """Return the place of each task's cron expression, for later error messages."""
    tasks = get_part(get_part(tree, "scheduler"), "tasks")
    written = tasks.value if tasks is not None and isinstance(tasks.value, list) else []
    found = [get_part(task, "cron") for task in written]
    return ["" if cron is None else str(cron.place) for cron in found]
