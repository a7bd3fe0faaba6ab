"""The dashboard inside a Flask application: its pages update, and its users act."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, redirect
from playwright.async_api import Page, expect
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from nimburion.integrations.flask import FlaskJobs, find_processor, make_dashboard
from nimburion.server import Caller

pytestmark = pytest.mark.asyncio(loop_scope="session")
jobs = FlaskJobs()


@jobs.job(queue="mail")
def welcome(address: str) -> None: ...


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    made = Flask("shop")
    made.config["NIMBURION_URL"] = f"sqlite:///{tmp_path}/jobs.db"
    jobs.init_app(made)
    caller = Caller("ann", frozenset({"read", "operate"}))
    made.register_blueprint(make_dashboard(lambda: caller), url_prefix="/jobs")
    yield made
    find_processor(made).sync.close()


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """The address of the dashboard in an application that a threaded server runs."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.port}/jobs/dashboard"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_page_updates_and_a_pause_has_the_name_of_the_user(
    app: Flask, address: str, page: Page
) -> None:
    await page.goto(f"{address}/queues")
    with app.app_context():
        welcome.enqueue_sync("ann")
    await expect(page.locator("#queue-mail")).to_be_visible()
    form = page.locator("#queue-mail details.action")
    await form.locator("summary").click()
    await form.locator("[name=reason]").fill("a deploy")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text("Queue mail is paused")
    await expect(page.locator("#queue-mail")).to_contain_text("paused")
    await page.goto(f"{address}/audit")
    await expect(page.locator("#live")).to_contain_text("ann")


async def test_a_page_says_so_when_its_user_was_signed_out(
    app: Flask, address: str, page: Page
) -> None:
    is_signed_out = threading.Event()

    def guard() -> Response | None:
        return redirect("/sign-in") if is_signed_out.is_set() else None

    app.before_request(guard)
    app.add_url_rule("/sign-in", "sign_in", lambda: "the page that signs in")
    with app.app_context():
        welcome.enqueue_sync("ann")
    await page.goto(f"{address}/queues")
    form = page.locator("#queue-mail details.action")
    await form.locator("summary").click()
    is_signed_out.set()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_have_text(
        "Nothing is changed: sign in first. Reload the page to do so."
    )
    await expect(page.locator("#banner")).to_contain_text("Reload it to sign in")
    await expect(page.locator("#queue-mail")).to_be_visible()
