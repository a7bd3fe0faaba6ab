"""Fills in the arguments of a job that are results of other members of its flow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from nimburion.core.errors import BackendUnavailable
from nimburion.core.flows import ResultRef
from nimburion.core.job import JobRecord, State
from nimburion.core.result_errors import decode_result_error
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.handling.context import Context, get_record
from nimburion.jobs.payloads.codec import UnreadablePayload
from nimburion.jobs.worker.attempt.outcome import HandlerNotCalled

ReadRecords = Callable[[Sequence[str]], Awaitable[Mapping[str, JobRecord]]]
"""Returns the records of those jobs that exist, by id, with their results."""

_PAGE = 100
"""The most results that are read before their size is checked."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MemberResults:
    """Reads results of other members, and adds them to payloads.

    Args:
        read_records: reads jobs.
        max_bytes: the maximum size of a payload with its results.
    """

    def __init__(self, read_records: ReadRecords, max_bytes: int) -> None:
        self._read_records = read_records
        self._max_bytes = max_bytes

    async def fill_in(self, context: Context, handler: Handler) -> None:
        """Add the results to the payload of a context.

        Raises:
            UnreadablePayload: a result is not kept, or is not what the handler takes.
            HandlerNotCalled: the backend does not answer.
        """
        results = get_record(context).delivery.options.results
        ids = dict.fromkeys(job_id for one in results.values() for job_id in one.list_ids())
        try:
            records = await self._read(context, list(ids))
        except BackendUnavailable as error:
            raise HandlerNotCalled(f"its arguments could not be read: {error}") from None
        context.payload = self._add(context, records, results)
        try:
            handler.decode(context.payload)
        except UnreadablePayload as error:
            sources = ", ".join(
                f"{name!r} is the result of {ref.id}" for name, ref in results.items()
            )
            raise UnreadablePayload(f"{error} ({sources})") from error

    async def _read(self, context: Context, ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return the records of those jobs that exist, by id.

        Results that are too large together are not all read.
        """
        records: dict[str, JobRecord] = {}
        size = 0
        for start in range(0, len(ids), _PAGE):
            found = await self._read_records(ids[start : start + _PAGE])
            records |= found
            size += sum(len(record.result or b"") for record in found.values())
            self._check_size(context, size)
        return records

    def _check_size(self, context: Context, size: int) -> None:
        if size > self._max_bytes:
            raise UnreadablePayload(
                f"the payload of job {context.job_id} with the results of other members is "
                f"{size} bytes or more, over the limit of {self._max_bytes}; store the data "
                "elsewhere, and return its location"
            )

    def _add(
        self, context: Context, records: Mapping[str, JobRecord], results: Mapping[str, ResultRef]
    ) -> bytes:
        try:
            arguments = _members.decode(context.payload)
        except ValueError as error:
            raise UnreadablePayload(
                f"the payload of job {context.job_id} is no JSON object, so the results of other "
                f"members cannot be added: {error}"
            ) from error
        for name, ref in results.items():
            found = [
                _get_result(name, job_id, records.get(job_id), is_single=ref.count is None)
                for job_id in ref.list_ids()
            ]
            values = [value for value in found if value is not None]
            arguments[name] = msgspec.Raw(
                values[0] if ref.count is None else b"[" + b",".join(values) + b"]"
            )
        payload = msgspec.json.encode(arguments)
        self._check_size(context, len(payload))
        return payload


def _get_result(
    argument: str, job_id: str, record: JobRecord | None, *, is_single: bool
) -> bytes | None:
    """Return a result as JSON; None: the job of a group did not complete."""
    what = f"the argument {argument!r} is the result of job {job_id}"
    if record is None:
        raise UnreadablePayload(f"{what}, which is no longer kept")
    if record.state is not State.COMPLETED:
        if is_single:
            raise UnreadablePayload(f"{what}, which is {record.state}")
        return None
    reason = decode_result_error(record.result)
    if reason is not None:
        raise UnreadablePayload(f"{what}, which could not be stored: {reason}")
    if record.result is None:  # a member stores None as `null`
        raise UnreadablePayload(
            f"{what}, which is no longer kept (the setting keep_results), or whose handler is "
            "declared with result=False; enqueue the flow again under another id"
        )
    return record.result
