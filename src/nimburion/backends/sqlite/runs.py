"""The steps and signals of durable runs: store and read them. Imported when a run needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.planning.runs import RunCursor, cut_run_page, decide_signal, get_known_from
from nimburion.backends.planning.settle import list_wait_sources
from nimburion.backends.sqlite.connection.database import (
    ROWS_PER_STATEMENT,
    Database,
    Row,
    repeat_row,
)
from nimburion.backends.sqlite.flows import add_run_conditions, get_flow_changes
from nimburion.core.job import State
from nimburion.core.runs import (
    CLEANUP_STEP,
    MAX_DELIVERED_RUN,
    RUN_PAGE_BYTES,
    NewSignal,
    RecordedStep,
    RunPage,
    SignalOutcome,
    StoredSignal,
    make_signal_source,
)
from nimburion.core.settlement import Recorded, Suspended
from nimburion.core.timing.clock import MICRO

_encode = msgspec.json.Encoder().encode
_decode_steps = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode


def insert_steps(db: Database, session: int, steps: Sequence[Recorded]) -> set[tuple[int, int]]:
    """Store steps, except those whose token does not match a lease of the session, and those whose
    number the run has. Return seq and number of those that were stored.

    No number of a run may be in `steps` twice. A step that forgets the others comes alone.
    """
    stored: dict[tuple[int, int], int] = {}
    for start in range(0, len(steps), ROWS_PER_STATEMENT):
        part = steps[start : start + ROWS_PER_STATEMENT]
        values: list[object] = []
        for step in part:
            lease = step.lease
            values += (lease.ref, step.number, lease.token.fence, lease.token.nonce, step.body)
        text = repeat_row(db.statements["insert_steps"], "(?, ?, ?, ?, ?)", len(part))
        for seq, number, misses in db.connection.execute(text, (*values, db.now, session)):
            stored[seq, number] = misses
    reset = {seq for (seq, number), misses in stored.items() if misses and number != CLEANUP_STEP}
    if reset:
        db.run("reset_failures", _encode(sorted(reset)).decode())
    taken = []
    for step in steps:
        if (step.lease.ref, step.number) in stored:
            if step.takes is not None:
                taken.append((step.lease.ref, step.takes))
            if step.forgets:
                db.run("delete_other_steps", step.lease.ref, step.number)
    if taken:
        db.run("take_signals", _encode(taken).decode())
    return set(stored)


def suspend_runs(db: Database, session: int, runs: Mapping[int, Suspended]) -> set[int]:
    """Suspend runs that count for no limit, by seq. Return those whose token matches a lease of the
    session, and whose cancel was not requested.
    """
    ended: list[int] = []
    settlements = list(runs.items())
    for start in range(0, len(settlements), ROWS_PER_STATEMENT):
        part = settlements[start : start + ROWS_PER_STATEMENT]
        values: list[object] = []
        for seq, suspended in part:
            values += (seq, suspended.lease.token.fence, suspended.lease.token.nonce)
        text = repeat_row(db.statements["settle_suspended_runs"], "(?, ?, ?)", len(part))
        ended += [seq for (seq,) in db.connection.execute(text, (*values, session))]
    if ended:
        listed = _encode(ended).decode()
        db.run("insert_suspended_runs", session, listed)
        db.run("delete_leases", session, listed)
        add_run_conditions(db, {seq: list_wait_sources(runs[seq], db.now) for seq in ended})
    return set(ended)


class SignalledJob(NamedTuple):
    """A job to which signals are sent, with the signals that it has."""

    id: str
    seq: int
    state: int
    is_suspended: int
    unread: int
    last_number: int


def send_signals(db: Database, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
    """Store signals; see `Producing.send_signals`."""
    ids = sorted({signal.job_id for signal in signals})
    rows = db.run("list_signalled_jobs", _encode(ids).decode())
    jobs = {job.id: job for job in map(SignalledJob._make, rows)}
    listed = [(jobs[one.job_id].seq, one.id) for one in signals if one.job_id in jobs]
    known = set(db.run("list_known_signals", _encode(listed).decode()).fetchall())
    outcomes = []
    values = []
    for signal in signals:
        job = jobs.get(signal.job_id)
        if job is None:
            outcomes.append(decide_signal(None, is_known=False, unread=0))
            continue
        outcome = decide_signal(
            State.COMPLETED if job.state else State.PENDING,
            is_known=(job.seq, signal.id) in known,
            unread=job.unread,
        )
        outcomes.append(outcome)
        if outcome is SignalOutcome.STORED:
            known.add((job.seq, signal.id))
            number = job.last_number + 1
            jobs[job.id] = job._replace(unread=job.unread + 1, last_number=number)
            values.append((job.seq, number, signal.id, signal.name, db.now, signal.payload))
            if job.is_suspended:
                get_flow_changes(db).note_signal(make_signal_source(job.id, signal.name))
    if values:
        db.connection.executemany(db.statements["insert_signal"], values)
        for job in jobs.values():
            if (known_from := get_known_from(job.last_number)) > 1:
                db.run("forget_signals", job.seq, known_from)
    return outcomes


def read_run(db: Database, seq: int, limit: int, after: str | None) -> RunPage:
    """Return a page of a run; see `Reading.read_run`. It reads a bounded number of bytes."""
    cursor = RunCursor.parse(after)
    step_rows = db.run("list_steps", seq, cursor.step, limit + 1)
    steps = [
        RecordedStep(number, body, at / MICRO)
        for number, body, at in take_page(step_rows, 1, RUN_PAGE_BYTES)
    ]
    room = RUN_PAGE_BYTES - sum([len(step.body) for step in steps])
    signal_rows = db.run("list_unread_signals", seq, cursor.signal, limit + 1)
    signals = [
        StoredSignal(number, name, payload, at / MICRO)
        for number, name, payload, at in take_page(signal_rows, 2, room)
    ]
    return cut_run_page(cursor, steps, signals, limit)


def read_small_runs(db: Database, seqs: Sequence[int]) -> dict[int, RunPage]:
    """Return the runs, by seq, whose steps and unread signals come with their leases."""
    listed = _encode(seqs).decode()
    steps, bodies, has_signals = db.fetch_one(  # type: ignore[misc]
        "read_small_runs", listed, MAX_DELIVERED_RUN
    )
    pages: dict[int, RunPage] = {}
    start = 0
    for seq, number, at, size in _decode_steps(steps):
        page = pages.get(seq)
        if page is None:
            page = pages[seq] = RunPage([], [])
        page.steps.append(RecordedStep(number, bodies[start : start + size], at / MICRO))
        start += size
    if has_signals:
        for seq in [*pages]:
            page = read_run(db, seq, 100, None)
            size = sum([len(one.body) for one in page.steps])
            size += sum([len(one.payload) for one in page.signals])
            if page.next is None and size <= MAX_DELIVERED_RUN:
                pages[seq] = page
            else:
                del pages[seq]
    return pages


def take_page(rows: Iterable[Row], column: int, room: int) -> Iterator[Row]:
    """Yield rows until a column of them has more bytes than `room`, and one row more, which says
    that another page follows.
    """
    for row in rows:
        yield row
        if room < 0:
            return
        room -= len(row[column])
