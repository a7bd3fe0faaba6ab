"""Tables as CSV: for each page that has one, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest

from nimburion.server.dashboard.csv_tables import make_csv
from nimburion.server.dashboard.page import AnyPage
from tests.server.conftest import Api
from tests.server.dashboard.conftest import every_page, make_path


class Inner(msgspec.Struct):
    id: str
    started_at: float | None


class Row(msgspec.Struct):
    name: str
    job: Inner | None
    counts: dict[str, int]
    share: float
    is_full: bool = False


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_each_row_has_the_fields_and_those_of_nested_structs() -> None:
    rows = [
        Row("mail", Inner("a", 1_795_843_788.25), {"send": 2}, -0.5),
        Row("other", None, {}, 0.0, is_full=True),
    ]
    first, second = parse(make_csv(rows))
    assert first == {
        "name": "mail",
        "job.id": "a",
        "job.started_at": "2026-11-28T05:29:48.250Z",
        "counts": '{"send":2}',
        "share": "-0.5",
        "is_full": "false",
    }
    assert (second["job.id"], second["is_full"]) == ("", "true")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "|calc", "%0", "\r=1", "\n=1", "\uff1d1"],
)
def test_a_text_is_never_a_formula(text: str) -> None:
    (row,) = parse(make_csv([Inner(text, None)]))
    assert row["id"][0] in "'\\", row["id"]


def test_nor_is_a_part_behind_a_semicolon() -> None:
    """In many countries, spreadsheets separate cells at semicolons, also inside of quotes."""
    (row,) = parse(make_csv([Inner("a; =1;-2;b;c-d", None)]))
    assert row["id"] == "a;' =1;'-2;b;c-d"


def test_quotes_breaks_and_hidden_characters_stay_in_their_cell() -> None:
    (row,) = parse(make_csv([Inner('a"b,c\nd\u202ee\x00', None)]))
    assert row["id"] == 'a"b,c\\nd\\u202ee\\x00'


@every_page
async def test_each_table_of_a_page(site: Api, page: AnyPage) -> None:
    html = (await site.client.get(make_path(page))).text
    assert html.count("format=csv") == len(page.tables)
    for table in page.tables:
        response = await site.client.get(make_path(page), params={"format": "csv", "table": table})
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/csv")
        name = page.name if table == page.tables[0] else f"{page.name}-{table}"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{name}.csv"'
        assert all(None not in row for row in parse(response.text))
    response = await site.client.get(make_path(page), params={"format": "csv"})
    assert response.status_code == (200 if page.tables else 422)
    if page.name == "jobs":
        assert sorted(row["id"] for row in parse(response.text)) == [
            *("a", "b", "c"),
            *("import.mail", "import.parts.0"),
        ]
    odd = await site.client.get(make_path(page), params={"format": "csv", "table": "__class__"})
    assert odd.status_code == 422
