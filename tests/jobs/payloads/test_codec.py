"""Arguments become payloads and come back the same; what does not fit is refused by field."""

import dataclasses
import enum
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.settings import Settings
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.declaration.job import Job
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.payloads.codec import Codec, UnreadablePayload
from nimburion.jobs.payloads.fields import JobField
from nimburion.jobs.payloads.json_values import nests_deeper_than

LIMITS = SizeLimits()
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
NAIVE = datetime(2026, 1, 2, 12)  # noqa: DTZ001


class Opaque:
    """A class that has no JSON form."""


@dataclasses.dataclass
class Address:
    city: str
    since: datetime | None = None


class Point(msgspec.Struct):
    x: int


class Square(msgspec.Struct, tag=True):
    side: float


class Circle(msgspec.Struct, tag=True):
    radius: float


@attrs.define
class Size:
    width: int


class Options(TypedDict):
    depth: int


class Pair(NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Order(pydantic.BaseModel):
    number: int
    placed: datetime | None = None
    total: float = 0.0
    sender: str = pydantic.Field(default="", alias="from")


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    at: datetime


class Tree(msgspec.Struct):
    children: list["Tree"] = []


class Markup(str):
    __slots__ = ()


UserId = NewType("UserId", int)


def codec_of(kind: Any) -> Codec:
    return Codec("sample", [JobField("it", kind)])


def round_trip(kind: Any, value: Any) -> Any:
    codec = codec_of(kind)
    return codec.decode(codec.encode({"it": value}, LIMITS), LIMITS).it


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (str, "ü\0\n\U0001f600"),
        (str, ""),
        (int, -(2**63)),
        (int, 2**64 - 1),
        (float, 1.5),
        (bool, True),
        (None, None),
        (bytes, b"\xff\0"),
        (Decimal, Decimal("1.10")),
        (datetime, NOON),
        (date, date(2026, 1, 2)),
        (time, time(12, 30)),
        (timedelta, timedelta(days=1, microseconds=1)),
        (uuid.UUID, uuid.UUID(int=7)),
        (Colour, Colour.RED),
        (Level, Level.LOW),
        (Literal["a", 1], 1),
        (UserId, UserId(5)),
        (int | None, None),
        (int | str | None, "x"),
        (list[int], [1, 2]),
        (Sequence[int], [1, 2]),
        (tuple[int, str], (1, "a")),
        (set[str], {"a"}),
        (frozenset[int], frozenset({1})),
        (dict[str, list[int]], {"a": [1]}),
        (Mapping[str, int], {"a": 1}),
        (dict[int, str], {1: "a"}),
        (dict[uuid.UUID, int], {uuid.UUID(int=7): 1}),
        (Address, Address("Rome", NOON)),
        (list[Address], [Address("Rome")]),
        (Point, Point(1)),
        (Square | Circle, Circle(2.0)),
        (Size, Size(3)),
        (Options, {"depth": 1}),
        (Pair, Pair(1, "a")),
        (Order, Order.model_validate({"number": 1, "placed": NOON, "from": "me"})),
        (Order | None, None),
        (list[Order], [Order(number=2)]),
        (Strict, Strict(at=NOON)),
        (Tree, Tree([Tree(), Tree([Tree()])])),
        (Any, {"a": [1, None, True, 1.5, "x"]}),
        (object, ["anything"]),
        (Annotated[int, msgspec.Meta(ge=0)], 0),
    ],
)
def test_a_value_comes_back_as_it_was(kind: Any, value: Any) -> None:
    back = round_trip(kind, value)
    assert back == value
    assert type(back) is type(value) or kind in (Any, object)


@pytest.mark.parametrize(
    ("kind", "value", "back"),
    [
        (str, Markup("<b>"), "<b>"),
        (float, 1, 1.0),
        (list[int], (1, 2), [1, 2]),
        (str, Colour.RED.value, "red"),
        (Colour, "red", Colour.RED),
        (Any, (1, 2), [1, 2]),
        (Any, Address("Rome"), {"city": "Rome", "since": None}),
    ],
)
def test_a_near_value_becomes_the_declared_one(kind: Any, value: Any, back: Any) -> None:
    assert round_trip(kind, value) == back


@pytest.mark.parametrize(
    ("kind", "value", "field", "complaint"),
    [
        (str, 5, "it", "expected `str`, got `int`"),
        (str, b"x", "it", "expected `str`, got `bytes`"),
        (str, None, "it", "expected `str`, got `null`"),
        (int, None, "it", "got `null` (the id of a new row is None until it is saved"),
        (uuid.UUID, None, "it", "got `null` (the id of a new row is None until"),
        (str, NOON, "it", "expected `str`, got `datetime`"),
        (bytes, "abcd", "it", "expected `bytes`, got `str`"),
        (int, "1", "it", "expected `int`, got `str`"),
        (int, True, "it", "expected `int`, got `bool`"),
        (int, 1.0, "it", "expected `int`, got `float`"),
        (int, 2**64, "it", "64 bits"),
        (int, -(2**63) - 1, "it", "64 bits"),
        (int, 10**400, "it", "64 bits"),
        (float, float("nan"), "it", "finite"),
        (float, float("-inf"), "it", "finite"),
        (float | None, float("inf"), "it", "finite"),
        (datetime, NAIVE, "it", "time zone"),
        (datetime, "2026-01-02T12:00:00Z", "it", "expected `datetime`, got `str`"),
        (uuid.UUID, "x", "it", "expected `uuid`, got `str`"),
        (Colour, "blue", "it", "'blue'"),
        (Literal["a"], "b", "it", "'b'"),
        (list[int], [1, "2"], "it[1]", "expected `int`, got `str`"),
        (list[float], [1.0, float("nan")], "it[1]", "finite"),
        (dict[str, int], {1: 1}, "it", "expected `str`, got `int`"),
        (dict[str, list[datetime]], {"a": [NAIVE]}, "it.a[0]", "time zone"),
        (Address, "Rome", "it", "expected `object`, got `str`"),
        (Address, Address(5), "it.city", "expected `str`, got `int`"),  # type: ignore[arg-type]
        (Address, Address(b"x"), "it.city", "expected `str`"),  # type: ignore[arg-type]
        (Address, Address("Rome", NAIVE), "it.since", "time zone"),
        (Point, Point("x"), "it.x", "expected `int`, got `str`"),  # type: ignore[arg-type]
        (Size, Size("x"), "it.width", "expected `int`, got `str`"),  # type: ignore[arg-type]
        (Options, {}, "it", "missing required field `depth`"),
        (Options, {"depth": "x"}, "it.depth", "expected `int`, got `str`"),
        (Order, {"number": "x"}, "it", "number: Input should be a valid integer"),
        (Order, Order.model_construct(number="x"), "it", "number: Input should be"),
        (Order, Order(number=1, placed=NAIVE), "it.placed", "time zone"),
        (Order, Order(number=1, total=float("nan")), "it.total", "finite"),
        (Any, object(), "it", "`object` cannot be encoded as JSON"),
        (Any, {"a": Opaque()}, "it", "cannot be encoded as JSON"),
        (Any, {"a": {"b": NAIVE}}, "it.a.b", "time zone"),
        (str, "\ud800", "it", "lone surrogate"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "it", ">= 0"),
    ],
)
def test_a_wrong_value_is_refused_by_field_and_type(
    kind: Any, value: Any, field: str, complaint: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        codec_of(kind).encode({"it": value}, LIMITS)
    text = str(refused.value)
    assert text.startswith("job 'sample', ")
    assert f"field {field!r}: " in text
    assert complaint in text


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidJob, match="field 'it': it contains itself"):
        codec_of(Any).encode({"it": endless}, LIMITS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Opaque, "Opaque cannot be encoded as JSON"),
        (deque[int], "deque cannot be encoded as JSON"),
        (Iterable[int], "Iterable cannot be encoded as JSON"),
        (complex, "complex cannot be encoded as JSON"),
        (list[dict[str, Opaque]], "Opaque cannot be encoded as JSON"),
        (datetime | str, "more than one str-like type"),
        (Address | Point, "more than one dict-like type"),
        (msgspec.Raw, "cannot be encoded as JSON"),
    ],
)
def test_a_type_that_cannot_travel_is_refused_at_registration(kind: Any, message: str) -> None:
    class Sample(Job):
        good: int
        it: kind  # pyright: ignore[reportInvalidTypeForm]

        def process(self, ctx: Any, /) -> None: ...

    with pytest.raises(DefinitionError) as refused:
        Registry(Settings()).add(Sample)
    text = str(refused.value)
    assert "job 'sample', field 'it': " in text
    assert message in text
    assert "instead" in text


ODD_PAYLOADS = [
    (b"", "truncated"),
    (b"{", "truncated"),
    (b"nonsense", "malformed"),
    (b"[1]", "expected `object`, got `array`"),
    (b"null", "expected `object`, got `null`"),
    (b'{"it":1} x', "trailing characters"),
    (b'{"it":"x"}', "field 'it': expected `int`, got `str`"),
    (b'{"it":1.5}', "field 'it': expected `int`, got `float`"),
    (b"{}", "missing required field `it`"),
    (b'{"it":1,"more":2}', "unknown field `more`"),
    (b'{"\xff":1}', "payload does not fit"),
    (b'{"it":' + b"[" * 100_000, "nests deeper than the limit of 64"),
]


@pytest.mark.parametrize(("payload", "message"), ODD_PAYLOADS)
def test_an_unreadable_payload_says_what_does_not_fit(payload: bytes, message: str) -> None:
    with pytest.raises(UnreadablePayload) as refused:
        codec_of(int).decode(payload, LIMITS)
    assert "job 'sample'" in str(refused.value)
    assert message in str(refused.value)


def test_a_naive_datetime_in_a_stored_payload_is_unreadable_too() -> None:
    with pytest.raises(UnreadablePayload, match=r"field 'it\.since': .*time zone"):
        codec_of(Address).decode(b'{"it":{"city":"x","since":"2026-01-02T12:00:00"}}', LIMITS)


def test_defaults_are_written_out_so_that_a_later_default_changes_no_stored_job() -> None:
    class Greeting(Job):
        to: str
        words: list[str] = dataclasses.field(default_factory=lambda: ["hello"])

    assert Greeting.__job__.encode(Greeting(to="a"), LIMITS) == b'{"to":"a","words":["hello"]}'


def test_a_payload_over_the_limit_is_refused_with_both_numbers() -> None:
    codec = codec_of(str)
    fits = codec.encode({"it": "x" * 90}, SizeLimits(payload=100))
    assert len(fits) == 99
    with pytest.raises(InvalidJob, match="102 bytes, over the limit of 100"):
        codec.encode({"it": "x" * 93}, SizeLimits(payload=100))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_bounded_on_both_sides() -> None:
    codec = codec_of(Any)
    fits = codec.encode({"it": nested(63)}, LIMITS)  # the object itself is one level
    assert codec.decode(fits, LIMITS).it == nested(63)
    with pytest.raises(InvalidJob, match="nests deeper than the limit of 64"):
        codec.encode({"it": nested(64)}, LIMITS)
    with pytest.raises(UnreadablePayload, match="nests deeper than the limit of 64"):
        codec.decode(b'{"it":' + msgspec.json.encode(nested(64)) + b"}", LIMITS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\x'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"\\'), inner),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(JSON, st.integers(0, 5))
def test_the_measured_depth_equals_the_parsed_one(value: Any, limit: int) -> None:
    assert nests_deeper_than(limit, msgspec.json.encode(value)) == (depth_of(value) > limit)


@given(st.binary(max_size=300), st.integers(0, 5))
def test_the_depth_of_anything_is_measured_without_failing(payload: bytes, limit: int) -> None:
    assert nests_deeper_than(limit, b'"' + payload) in (True, False)
