"""A FastAPI application with background jobs: signups that send mail, and reports with progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException

from nimburion import Context, Processor, Scheduler, Unique, config
from nimburion.errors import JobNotFound
from nimburion.integrations.fastapi import ProcessorDependency, router

# The backend is that of NIMBURION_JOBS__URL or config.yaml; by default SQLite in ./nimburion.db.
processor = Processor.from_config(config.load())


@processor.job(queue="mail", max_retries=5, timeout=30)
async def send_welcome(address: str) -> str:
    """Send a mail. A failure is retried five times, with growing delays."""
    return f"mail to {address}"


@processor.job(queue="reports", unique=Unique("year", on_duplicate="existing"))
def make_report(ctx: Context, year: int) -> dict[str, int]:
    """Make a report. It is a plain `def`, so it may block; it runs in a thread."""
    for month in range(1, 13):
        ctx.raise_if_cancelled()
        ctx.progress(month / 12, f"{year}-{month:02}")
    return {"year": year, "pages": 12}


scheduler = Scheduler(processor)
scheduler.schedule("0 2 1 1 *", make_report.job(2026), name="yearly-report")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open what the application itself needs; the processor is opened by its router."""
    await asyncio.sleep(0)
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(router(processor))


@app.post("/signups", status_code=202)
async def sign_up(address: str) -> dict[str, str]:
    """Enqueue the mail, and answer with the id of its job."""
    return {"job": await send_welcome.enqueue(address)}


@app.post("/reports/{year}", status_code=202)
def request_report(year: int) -> dict[str, str]:
    """Enqueue a report from an endpoint that is not async. A repeat returns the same job."""
    return {"job": make_report.enqueue_sync(year)}


@app.get("/jobs/{job_id}")
async def show_job(job_id: str, jobs: ProcessorDependency) -> dict[str, Any]:
    """Show the state, the progress and the result of a job."""
    try:
        return (await jobs.get_status(job_id)).public_dict()
    except JobNotFound as error:
        raise HTTPException(404, str(error)) from None


@app.get("/health")
async def health(jobs: ProcessorDependency) -> dict[str, Any]:
    """Show whether this process reaches its backend."""
    return jobs.health().to_dict()
