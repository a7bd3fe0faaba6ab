"""The dashboard in a Flask application: its sign-in decides, its pages poll."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, abort, redirect, request, session
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from nimburion import chain
from nimburion.core.access_rights import RIGHTS
from nimburion.core.errors import DefinitionError
from nimburion.integrations.flask import FlaskJobs, find_processor, make_dashboard
from nimburion.server import Caller
from nimburion.server.dashboard.site import ACTIONS, PAGES

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}

jobs = FlaskJobs()


@jobs.job(queue="mail")
def welcome(address: str) -> None: ...


def find_caller() -> Caller | None:
    if "user" not in session:
        return None
    return Caller(session["user"], frozenset(session["rights"]))


def make_app(url: str = "memory://") -> Flask:
    app = Flask("shop")
    app.config.update(NIMBURION_URL=url, SECRET_KEY="only for tests")
    jobs.init_app(app)
    app.register_blueprint(make_dashboard(find_caller), url_prefix="/jobs")
    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    made = make_app()
    with made.app_context():
        welcome.options(id="a").enqueue_sync("ann")
        find_processor(made).sync.enqueue_flow(chain(welcome.job("bob")), id="f")
    yield made
    find_processor(made).sync.close()


def test_the_rights_of_a_caller_may_be_a_list() -> None:
    app = Flask("shop")
    app.config.update(NIMBURION_URL="memory://", SECRET_KEY="only for tests")
    FlaskJobs().init_app(app)
    rights: Any = ["read"]
    app.register_blueprint(make_dashboard(lambda: Caller("ann", rights)), url_prefix="/jobs")
    with app.app_context():
        assert app.test_client().get("/jobs/dashboard/queues").status_code == 200
        find_processor(app).sync.close()


def sign_in(app: Flask, *rights: str, name: object = "ann@example.com") -> FlaskClient:
    client = app.test_client()
    with client.session_transaction() as session:
        session.update(user=name, rights=list(rights))
    return client


def read(client: FlaskClient, path: str) -> Any:
    return client.get(f"/jobs/dashboard{path}", query_string={"format": "json"}).get_json()


def pause(client: FlaskClient, **headers: str) -> TestResponse:
    return client.post(
        "/jobs/dashboard/queues/mail/pause", data={"reason": "deploy"}, headers={**FORM, **headers}
    )


def test_each_page_is_below_the_prefix_and_polls(app: Flask) -> None:
    client = sign_in(app, *RIGHTS)
    values = {"queue": "mail", "id": "a", "fingerprint": "none", "flow": "f"}
    shown = [page for page in PAGES if page.name != "arguments"]  # needs a dead letter
    for page in shown:
        path = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], page.path)
        answer = client.get(f"/jobs/dashboard{path}", base_url="http://localhost/ops")
        assert answer.status_code == 200, (page.name, answer.text)
        assert 'href="/ops/jobs/dashboard/queues"' in answer.text
        assert ('data-poll="' in answer.text) is (page.interval is not None)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        styles = re.findall(r'href="/ops(/jobs/dashboard/static/[^"]+\.css[^"]*)"', answer.text)
        assert styles
        assert answer.text.count('rel="stylesheet"') == len(styles)
        for style in styles:
            assert client.get(style).content_type.startswith("text/css")
    assert client.get("/jobs/").location == "/jobs/dashboard"


def test_an_action_is_recorded_with_the_name_of_the_user(app: Flask) -> None:
    client = sign_in(app, "read", "operate")
    answer = pause(client, **OWN_PAGE)
    assert answer.status_code == 303
    assert answer.location == "/jobs/dashboard/queues/mail?notice=queues.queue.pause"
    (found,) = read(client, "/audit")["records"]
    assert (found["record"]["by"], found["record"]["outcome"]) == ("ann@example.com", "done")
    assert "deploy" in client.get("/jobs/dashboard/queues/mail?format=fragment").text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://example.org"},
        {"Authorization": "Bearer what-a-browser-may-add"},
    ],
)
def test_a_form_of_another_site_changes_nothing(app: Flask, headers: dict[str, str]) -> None:
    client = sign_in(app, *RIGHTS)
    assert pause(client, **headers).status_code == 403
    assert read(client, "/audit")["records"] == []


def test_each_action_needs_its_right(app: Flask) -> None:
    for action in ACTIONS:
        others = [right for right in RIGHTS if right != action.operation.right]
        path = re.sub(r"\{\w+\}", "a", action.path)
        for client in (sign_in(app, *others), app.test_client()):
            answer = client.post(f"/jobs/dashboard{path}", headers={**FORM, **OWN_PAGE})
            assert answer.status_code == 403, (action.name, answer.text)
    assert read(sign_in(app, "read"), "/audit")["records"] == []


def test_who_is_not_signed_in_sees_nothing(app: Flask) -> None:
    for page in ("", "/queues", "/static/dashboard.css"):
        answer = app.test_client().get(f"/jobs/dashboard{page}")
        assert answer.status_code == 403
        assert "WWW-Authenticate" not in answer.headers
        assert "sign in to the application first" in answer.text


def test_the_application_may_send_people_to_its_sign_in() -> None:
    app = Flask("shop")
    app.config.update(NIMBURION_URL="memory://", PROPAGATE_EXCEPTIONS=True)
    jobs.init_app(app)

    def redirect_to_sign_in() -> Caller:
        abort(redirect("/sign-in"))

    app.register_blueprint(make_dashboard(redirect_to_sign_in), url_prefix="/jobs")
    client = app.test_client()
    assert client.get("/jobs/dashboard").location == "/sign-in"
    # The script of a page would show the page of the sign-in as a part of its own.
    assert client.get("/jobs/dashboard?format=fragment").status_code == 403
    assert pause(client, **OWN_PAGE, **{"HX-Request": "true"}).status_code == 403
    assert pause(client, **OWN_PAGE).location == "/sign-in"


def test_a_name_cannot_write_lines_into_the_log(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nimburion.audit")
    client = sign_in(app, "read", "operate", name="ann\nqueue.resume\x1b[2J\x00")
    assert pause(client, **OWN_PAGE).status_code == 303
    (found,) = read(client, "/audit")["records"]
    assert found["record"]["by"] == r"ann\nqueue.resume\x1b[2J\x00"
    assert caplog.messages == [f"queue.pause mail done by {found['record']['by']}"]


def test_a_name_must_be_a_text(app: Flask) -> None:
    app.config["TESTING"] = True
    with pytest.raises(DefinitionError, match="the name of a caller must be a text, not 7"):
        sign_in(app, "read", name=7).get("/jobs/dashboard")


def test_a_form_that_the_application_has_read_keeps_its_fields(app: Flask) -> None:
    app.before_request(lambda: request.form.get("csrf_token"))
    client = sign_in(app, "read", "operate")
    assert pause(client, **OWN_PAGE).status_code == 303
    assert read(client, "/queues/mail")["queue"]["pause"]["reason"] == "deploy"


def test_an_answer_has_no_headers_of_the_connection(app: Flask) -> None:
    form = {"reason": "x" * 3_000_000}
    path = "/jobs/dashboard/queues/mail/pause"
    answer = sign_in(app, *RIGHTS).post(path, data=form, headers={**FORM, **OWN_PAGE})
    assert answer.status_code == 413
    assert "Connection" not in answer.headers, "WSGI forbids it (PEP 3333)"


def test_a_right_that_does_not_exist_is_an_error(app: Flask) -> None:
    app.config["TESTING"] = True
    with pytest.raises(DefinitionError, match=r"no right 'operat'; did you mean 'operate'\?"):
        sign_in(app, "operat").get("/jobs/dashboard")


def test_a_backend_that_does_not_answer_makes_a_page() -> None:
    app = make_app("redis://127.0.0.1:1/0")
    answer = sign_in(app, "read").get("/jobs/dashboard")
    assert answer.status_code == 503
    assert "127.0.0.1:1" in answer.text
    assert "Content-Security-Policy" in answer.headers
    for client, status in ((app.test_client(), 403), (sign_in(app, "operate"), 503)):
        answer = client.get("/jobs/dashboard")
        assert answer.status_code == status
        assert "127.0.0.1:1" not in answer.text
    find_processor(app).sync.close()
