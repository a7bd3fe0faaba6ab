"""The static files: named by their content, unchanged copies of what others made, small."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from nimburion.server.dashboard.assets import load_assets, load_vendored
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.house.tree import PACKAGE
from tests.server.conftest import Api

STATIC = PACKAGE / "server" / "dashboard" / "static"


def test_vendored_files_are_what_the_list_says() -> None:
    for vendored in load_vendored():
        content = (STATIC / vendored.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == vendored.sha256, vendored.file
        assert vendored.licence == "0BSD"
    sheets = {"dashboard.css", "flows.css"}
    own = {*sheets, "dashboard.js", "icon.svg", "theme.js", "vendored.json"}
    listed = {vendored.file for vendored in load_vendored()}
    assert {path.name for path in STATIC.iterdir()} == own | listed


def test_the_own_style_sheets_are_small() -> None:
    assert len((STATIC / "dashboard.css").read_bytes()) <= 15 * 1024
    assert len((STATIC / "flows.css").read_bytes()) <= 3 * 1024


def test_templates_and_static_files_belong_to_the_package() -> None:
    package = files("nimburion.server.dashboard")
    assert package.joinpath("templates", "layout.html").is_file()
    assert package.joinpath("static", "htmx.min.js").is_file()


async def test_files_are_kept_for_a_year(api: Api) -> None:
    for name, asset in load_assets().items():
        path = f"{DASHBOARD_PATH}/static/{name}?v={asset.version}"
        response = await api.client.get(path)
        assert response.content == asset.content
        assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_no_other_file_is_served(api: Api) -> None:
    for name in ("vendored.json", "..%2Fassets.py", "nothing.js"):
        assert (await api.client.get(f"{DASHBOARD_PATH}/static/{name}")).status_code == 404
