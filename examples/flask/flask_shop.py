"""A Flask application with background jobs: signups that send mail, and reports with progress."""

from __future__ import annotations

from typing import Any

from flask import Flask, abort, current_app, request

from nimburion import Context, Scheduler, Unique
from nimburion.errors import JobNotFound
from nimburion.integrations.flask import FlaskJobs, find_processor

jobs = FlaskJobs()


@jobs.job(queue="mail", max_retries=5, timeout=30)
def send_welcome(address: str) -> str:
    """Send a mail. The handler runs in a context of the application that enqueued it."""
    return f"{current_app.config['SENDER']} wrote to {address}"


@jobs.job(queue="reports", unique=Unique("year", on_duplicate="existing"))
def make_report(ctx: Context, year: int) -> dict[str, int]:
    """Make a report, and say how far it is."""
    for month in range(1, 13):
        ctx.raise_if_cancelled()
        ctx.progress(month / 12, f"{year}-{month:02}")
    return {"year": year, "pages": 12}


def create_app(**settings: object) -> Flask:
    """Make the application. `NIMBURION_URL` names the backend, `sqlite:///jobs.db` by default."""
    app = Flask(__name__)
    app.config.from_mapping(SENDER="shop@example.com", NIMBURION_URL="sqlite:///jobs.db")
    app.config.from_mapping(settings)
    jobs.init_app(app)
    scheduler = Scheduler(find_processor(app))
    scheduler.schedule("0 2 1 1 *", make_report.job(2026), name="yearly-report")

    @app.post("/signups")
    def sign_up() -> tuple[dict[str, str], int]:
        return {"job": send_welcome.enqueue_sync(request.form["address"])}, 202

    @app.post("/reports/<int:year>")
    def request_report(year: int) -> tuple[dict[str, str], int]:
        return {"job": make_report.enqueue_sync(year)}, 202

    @app.get("/jobs/<job_id>")
    def show_job(job_id: str) -> dict[str, Any]:
        try:
            return jobs.processor.sync.get_status(job_id).public_dict()
        except JobNotFound as error:
            abort(404, str(error))

    @app.get("/health")
    def health() -> dict[str, Any]:
        return jobs.processor.health().to_dict()

    return app
