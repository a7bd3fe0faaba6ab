"""The page with the data of one job: arguments, result, headers and tracebacks."""

from __future__ import annotations

import re
import shlex

import msgspec

from nimburion.core.job import AttemptError
from nimburion.core.text.escaping import escape_in_json
from nimburion.server.api.jobs import JobContents, get_job_contents
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery
from nimburion.server.dashboard.page import DashboardPage, PageRequest

MAX_ERRORS = 20
MAX_FRAMES = 8
MAX_COMMAND_BYTES = 4_000


class TracebackFrame(msgspec.Struct, frozen=True):
    """One line of a traceback."""

    file: str
    line: int
    function: str


class ShownError(msgspec.Struct, frozen=True, kw_only=True):
    """The error of one attempt, with the frames of the application."""

    attempt: int
    kind: str
    type: str
    message: str
    at: float
    own_frames: list[TracebackFrame]
    """The innermost frames that are neither of Python nor of an installed package."""
    traceback: str


class JobContentsData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job. Texts are those that are stored, never encoded again."""

    contents: JobContents
    errors: list[ShownError]
    """The latest errors, the latest first."""
    command: str | None
    """The command that enqueues the same job again; None if its arguments are not kept, are no
    JSON, or are long.
    """


async def read_job_contents(request: PageRequest[NoQuery]) -> JobContentsData:
    """Read the data of a job."""
    asked = ApiRequest(request.services, request.caller, request.path, NoQuery(), NoBody())
    contents = await request.readings.read(
        f"contents {request.path['id']}", lambda: get_job_contents(asked)
    )
    job_id = request.path["id"]
    job = await request.readings.read(
        f"job record {job_id}", lambda: request.readings.backend.reads.get_job(job_id)
    )
    errors = [make_shown_error(error) for error in contents.errors[: -MAX_ERRORS - 1 : -1]]
    return JobContentsData(
        contents=msgspec.structs.replace(contents, errors=[]),
        errors=errors,
        command=make_command(job.name, job.queue, contents.payload),
    )


def make_command(name: str, queue: str, payload: msgspec.Raw | None) -> str | None:
    """Return the command line that enqueues a job with these arguments."""
    if payload is None or len(bytes(payload)) > MAX_COMMAND_BYTES:
        return None
    # In JSON, tabs and line breaks stand between values only: in texts they are escapes.
    arguments = escape_in_json(re.sub(r"[\t\r\n]+", " ", bytes(payload).decode()))
    words = ["nimburion", "enqueue", name, "--args", arguments, "--queue", queue]
    return " ".join(map(shlex.quote, words))


def make_shown_error(error: AttemptError) -> ShownError:
    """Return an error with the frames of the application."""
    return ShownError(
        attempt=error.attempt,
        kind=error.kind,
        type=error.type,
        message=error.message,
        at=error.at,
        own_frames=find_own_frames(error.traceback),
        traceback=error.traceback,
    )


_FRAME = re.compile(r'^  File "([^"\n]{1,500})", line (\d{1,9}), in (.{1,200})$', re.MULTILINE)
_FOREIGN = re.compile(r"site-packages|dist-packages|/lib/python\d|/nimburion/|^<")


def find_own_frames(traceback: str) -> list[TracebackFrame]:
    """Return the frames of the application, the innermost first."""
    frames = [
        TracebackFrame(found[1], int(found[2]), found[3])
        for found in _FRAME.finditer(traceback)
        if not _FOREIGN.search(found[1])
    ]
    return frames[: -MAX_FRAMES - 1 : -1]


JOB_CONTENTS = DashboardPage(
    path="/jobs/{id}/contents",
    title="Data of job {id}",
    section="Jobs",
    right="payloads",
    read=read_job_contents,
    template="jobs/job_contents.html",
    interval=None,
)
