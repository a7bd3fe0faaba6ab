"""The data of a job, for its page: arguments, result, headers and tracebacks, or their shape."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import msgspec

from nimburion.core.job import JobRecord
from nimburion.core.text.escaping import escape_in_json
from nimburion.core.text.shortening import shorten
from nimburion.server.api.jobs import JobContents, get_job_contents
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery
from nimburion.server.dashboard.page import PageRequest

MAX_COMMAND_BYTES = 4_000
MAX_SHOWN_CHARACTERS = 120
"""The characters of the arguments that a list of jobs shows."""
MAX_READ_BYTES = 4 * MAX_SHOWN_CHARACTERS + 1
"""The bytes of the arguments that it reads; the last one says that there are more."""
MAX_SHAPE_BYTES = 65_536
"""The shape of longer data is its size."""
MAX_SHAPE_NAMES = 20
_CONTENTS_AGE = 30.0
"""Seconds for which the data of a job counts, unless it runs or ends meanwhile."""
_ENDED_AGE = 60.0
"""The same for a job that has ended."""


class TracebackPart(msgspec.Struct, frozen=True):
    """Consecutive lines of a traceback: of the application, or of libraries."""

    text: str
    library_frames: int
    """The number of frames, if all are of Python or of installed packages; else 0."""


class ContentsShape(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job for callers who may not see it: names and types, and no values."""

    arguments: str
    result: str
    """Its type only: the names in a result may be data."""
    headers: int


class ShownContents(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job. Texts are those that are stored, never encoded again."""

    contents: JobContents
    command: str | None
    """The command that enqueues the same job again; None if its arguments are not kept, are no
    JSON, or are long.
    """


async def read_contents(request: PageRequest[NoQuery], job: JobRecord) -> JobContents:
    """Read the data of a job. Callers without the right `payloads` may see its shape only.

    Data that was read stays valid until an attempt begins or ends, unless somebody changes the
    arguments.
    """
    asked = ApiRequest(request.services, request.caller, request.path, NoQuery(), NoBody())
    age = _ENDED_AGE if job.state.finished else _CONTENTS_AGE
    step = f"{job.state} {job.attempt} {job.failures} {job.lost} {job.finished_at}"
    return await request.readings.read(
        f"contents {job.id} {step}", lambda: get_job_contents(asked), age
    )


def describe_contents_shape(contents: JobContents) -> ContentsShape:
    """Return the shape of the data of a job."""
    return ContentsShape(
        arguments=describe_shape(contents.payload),
        result=_describe_result(contents.result),
        headers=len(contents.headers),
    )


def describe_shape(value: msgspec.Raw | None) -> str:
    """Return the names and types of an object, or the type of another value; no values.

    >>> describe_shape(msgspec.Raw(b'{"to": "a", "order": 7, "lines": [1, 2], "note": null}'))
    'to: text, order: number, lines: list of 2, note: nothing'
    >>> describe_shape(msgspec.Raw(b"{}")), describe_shape(None)
    ('no arguments', '')
    """
    if value is None:
        return ""
    text = bytes(value)
    if len(text) > MAX_SHAPE_BYTES:
        return f"{len(text)} bytes"
    found = msgspec.json.decode(text)
    if not isinstance(found, dict):
        return _describe_type(found)
    names = [f"{shorten(name, 60)}: {_describe_type(one)}" for name, one in found.items()]
    more = len(names) - MAX_SHAPE_NAMES
    rest = [f"{more} more"] if more > 0 else []
    return ", ".join(names[:MAX_SHAPE_NAMES] + rest) or "no arguments"


def _describe_result(result: msgspec.Raw | None) -> str:
    if result is None:
        return ""
    if len(bytes(result)) > MAX_SHAPE_BYTES:
        return f"{len(bytes(result))} bytes"
    return _describe_type(msgspec.json.decode(result))


def _describe_type(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case list():
            return f"list of {len(value)}"
        case dict():
            return f"object of {len(value)}"
        case _:
            return "text"


def shorten_arguments(payload: bytes | None) -> str:
    """Return the beginning of the arguments for a list, on one line.

    >>> shorten_arguments(b'{"to": "a","order":  7}'), shorten_arguments(b"{}")
    ('to: "a", order: 7', '')
    >>> shorten_arguments(b'{"lines": [{"sku":"A-1","count":2}]}')
    'lines: [{ sku: "A-1", count: 2}]'
    """
    if payload is None:
        return ""
    start = payload[: MAX_READ_BYTES - 1].decode(errors="replace")
    words = " ".join(start.split())
    if len(payload) <= len(start.encode()) and words.startswith("{") and words.endswith("}"):
        words = words[1:-1].strip()
    named = re.sub(r'(^|[{,]) ?"(\w+)": ?', r"\1 \2: ", words).lstrip()
    return shorten(named, MAX_SHOWN_CHARACTERS)


def make_command(name: str, queue: str, payload: msgspec.Raw | None) -> str | None:
    """Return the command line that enqueues a job with these arguments."""
    if payload is None or len(bytes(payload)) > MAX_COMMAND_BYTES:
        return None
    # In JSON, tabs and line breaks stand between values only: in texts they are escapes.
    arguments = escape_in_json(re.sub(r"[\t\r\n]+", " ", bytes(payload).decode()))
    words = ["nimburion", "enqueue", name, "--args", arguments, "--queue", queue]
    return " ".join(map(shlex.quote, words))


_FRAME = re.compile(r'  File "([^"\n]{1,500})", line \d{1,9}(, in .{1,200})?')
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python\d|/nimburion/|^<")


def split_traceback(traceback: str) -> list[TracebackPart]:
    """Split a traceback where it goes from the application to libraries and back.

    If it has no frame of the application, it is one part.
    """
    parts: list[TracebackPart] = []
    lines: list[str] = []
    frames, has_own = 0, False
    for block, is_frame, is_library in _split_blocks(traceback):
        if lines and is_library is not (frames > 0):
            parts.append(TracebackPart("\n".join(lines), frames))
            lines, frames = [], 0
        lines += block
        frames += is_library
        has_own |= is_frame and not is_library
    if lines:
        parts.append(TracebackPart("\n".join(lines), frames))
    return parts if has_own else [TracebackPart(traceback.rstrip("\n"), 0)]


def _split_blocks(traceback: str) -> Iterator[tuple[list[str], bool, bool]]:
    """Yield each frame with its lines of code, and each other line with what belongs to it; then
    whether it is a frame, and whether it is one of a library.
    """
    block: list[str] = []
    is_frame = is_library = False
    for line in traceback.rstrip("\n").split("\n"):
        found = _FRAME.fullmatch(line)
        # Lines of code are indented further. Those of an exception group have a frame of their own.
        if block and (found or not line.startswith("    ")):
            yield block, is_frame, is_library
            block, is_frame, is_library = [], False, False
        block.append(line)
        if found:
            is_frame, is_library = True, _LIBRARY.search(found[1]) is not None
    if block:
        yield block, is_frame, is_library
