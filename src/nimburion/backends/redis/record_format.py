"""The layout of binary records, and the codes in them: the Python half of the Lua files
`record_format`, `constants` and `settle`.

The header of `record_format.lua` describes each record. A test compares it with the formats and
codes on both sides.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

from nimburion.core.flows import On, SourceKind
from nimburion.core.job import State

# --- flags of a job -------------------------------------------------------------------------------

FLAG_OPTIONS = 1
"""The job has options that differ from the defaults."""
FLAG_UNIQUE_KEY = 2
"""The job has a unique key."""
FLAG_LARGE_PAYLOAD = 4
"""The payload is stored in the hash `payload`."""
FLAG_FINISHED = 8
"""The job is completed, failed or cancelled."""
FLAG_ACCEPT_EXISTING = 16
"""If the unique key is taken, the enqueue returns the job that holds it."""
FLAG_PAYLOAD_KEPT = 32
"""The job is completed or cancelled, and keeps its payload."""
FLAG_SUSPENDED = 32
"""The job is not finished, and is suspended."""
FLAG_REPLACE = 64
"""If the unique key is taken, the enqueue replaces the job that holds it."""
FLAG_TENANT = 128
"""The job needs the turn of its tenant, which follows the options."""
MEMBER_MARK = 32
"""The first byte of the options of a job with a flow or conditions: a space."""

# --- codes ----------------------------------------------------------------------------------------

STATE_CODES: Mapping[State, str] = MappingProxyType(
    {
        State.PENDING: "P",
        State.SCHEDULED: "S",
        State.RETRYING: "R",
        State.PROCESSING: "L",
        State.SUSPENDED: "W",
        State.COMPLETED: "C",
        State.FAILED: "F",
        State.CANCELLED: "X",
    }
)
"""The codes of the states, in the order of `count_by_lane.lua`."""
STATES: Mapping[str, State] = MappingProxyType({code: state for state, code in STATE_CODES.items()})
"""The states by their codes."""

LEASED = STATE_CODES[State.PROCESSING].encode()

SESSION_ALIVE, SESSION_LEFT, SESSION_ENDED, SESSION_SEVERAL = b"a", b"l", b"e", b"s"
"""The status of a session: open, closed while attempts still run, or closed. In `expired_session`
also: had several leases when it expired.
"""

DUE_AT, DUE_AFTER = b"a", b"d"
"""The modes of a new job's due time: at a time, or after a span."""

CREATED, EXISTS, CONFLICT, TAKEN, REFUSED, REPLACED = b"c", b"e", b"x", b"t", b"r", b"p"
"""The outcomes of an enqueue."""
UNKNOWN_LANE = b"u"
"""The lane of the job is new. Nothing was stored."""
REPLACEABLE = b"w"
"""The unique key is taken, and the job that holds it waits."""

KIND_COMPLETED, KIND_COMPLETED_WITH_RESULT, KIND_RETRIED, KIND_FAILED = b"c", b"C", b"r", b"f"
KIND_KEPT, KIND_KEPT_WITH_RESULT = b"k", b"K"
KIND_RELEASED, KIND_SNOOZED, KIND_CANCELLED, KIND_PROGRESSED = b"l", b"s", b"x", b"p"
KIND_UNSTARTED, KIND_SNOOZED_UNSTARTED, KIND_RATE_LIMITED, KIND_SPENT = b"u", b"v", b"q", b"e"
KIND_RECORDED, KIND_SUSPENDED = b"t", b"w"
"""The kinds of settlements. KIND_SNOOZED is a release with a delay. With KIND_KEPT, the job is
completed and keeps its payload.
"""

SETTLED_DONE, SETTLED_ALREADY, SETTLED_STALE = b"d", b"a", b"s"
"""The results of a settlement."""

CANCEL_REQUESTED = b"1"
"""The cancel flag of a lease whose job is to be cancelled."""

SIGNAL_STORED, SIGNAL_EXISTS, SIGNAL_FINISHED = b"s", b"e", b"d"
SIGNAL_UNKNOWN, SIGNAL_FULL = b"u", b"f"
"""The outcomes of a signal."""
STEP_ENTRY, SIGNAL_ENTRY = b"s", b"u"
"""The kinds of what is stored about a durable run: a step, an unread signal."""

JOB_SOURCE, FLOW_SOURCE, SIGNAL_SOURCE, TIME_SOURCE = b"j", b"f", b"s", b"t"
"""The kinds of the sources of conditions."""
SOURCE_CODES: Mapping[SourceKind, bytes] = MappingProxyType(
    {
        SourceKind.JOB: JOB_SOURCE,
        SourceKind.FLOW: FLOW_SOURCE,
        SourceKind.SIGNAL: SIGNAL_SOURCE,
        SourceKind.TIME: TIME_SOURCE,
    }
)
ON_SUCCESS, ON_FAILURE, ON_FINISHED, ON_ANY = b"s", b"f", b"e", b"a"
"""Which end of its source meets a condition."""
ON_CODES: Mapping[On, bytes] = MappingProxyType(
    {On.SUCCESS: ON_SUCCESS, On.FAILURE: ON_FAILURE, On.FINISHED: ON_FINISHED, On.ANY: ON_ANY}
)

# --- records --------------------------------------------------------------------------------------

NEVER = b"\xff" * 8
"""The span of a unique key that the job holds until it ends; a max wait or the end of a pause that
does not exist.
"""
NO_SESSION = b"\0" * 4
"""The session of a job that no attempt ended."""
NO_REASON_LENGTH = 0xFFFF
"""The length that stands for no reason."""
SEQ = struct.Struct(">Q")
"""The field of a job in a hash: its seq."""
TOKEN = struct.Struct(">I16s")
"""fence, nonce."""
POSITION = struct.Struct(">HBc8s")
"""Of a new job: index of its lane in the call, rank, mode, value."""
NEW_JOB_HEAD = struct.Struct(">Bb16sB")
"""flags, priority, digest, length of the id that follows."""
JOB_HEAD = struct.Struct(">IQQBb16xB")
"""lane, created, due, flags, priority, length of the id that follows."""
JOB_END = struct.Struct(">cQQIH20x4s")
"""code, started, finished, failures, lost, session; more follows unless the job is completed."""
JOB_END_REASON = struct.Struct(">4xH")
"""length of the reason that follows."""
ATTEMPT_STATE = struct.Struct(">IH4xQQ20x")
"""failures, lost, started, due."""
LEASE = struct.Struct(">4x4x16x8xQcIH2x4x1xQ8x")
"""started, cancel flag, failures, lost, due; a settled token may follow."""
DELIVERY = struct.Struct(">QQIIH")
"""due, seq, fence, failures, lost."""
HISTORY_ENTRY = struct.Struct(">QI")
"""time, length of the JSON that follows."""
PROGRESS = struct.Struct(">d")
"""fraction; the message follows."""
RECORDED_STEP = struct.Struct(">IIc")
"""number, number of the signal that it takes (0: none), whether all other steps are removed; the
body follows.
"""
SESSION_STATE = struct.Struct(">4x8x8xQc8x")
"""opened, status; the codes of the last settlements follow."""
"""interval, burst, cost; the rate for people follows."""
PAUSE = struct.Struct(">QQ")
"""until, since; a JSON array of by and reason follows."""
FLOW = struct.Struct(">iiiiiQQQ8x")
"""unfinished, completed, failed, cancelled, added, created, finished, grown; the position is
skipped, and the identity follows.
"""
FLOW_IDENTITY = struct.Struct(">II?H")
"""members, max failed, whether it fails fast, length of the parent's id that follows; the name
follows it.
"""
NO_TIME = 0
"""When a flow that runs has finished, or one that is not open got members."""
