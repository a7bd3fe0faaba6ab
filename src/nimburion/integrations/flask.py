"""Flask: declare jobs once, and let each application have a processor of its own.

```python
jobs = FlaskJobs()


@jobs.job(queue="mail")
def welcome(address: str) -> None: ...


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["NIMBURION_URL"] = "sqlite:///jobs.db"
    jobs.init_app(app)
    return app
```

In a view, `welcome.enqueue_sync(address)` enqueues a job. It takes the header `X-Request-ID` of the
request as its correlation id, and the header `traceparent` as its parent. `flask nimburion worker`
runs the jobs, each in an application context. `make_dashboard` adds the pages for operators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlencode

from nimburion import config
from nimburion.core.errors import DefinitionError, NotOpen
from nimburion.core.settings import Config
from nimburion.integrations import explain_missing
from nimburion.jobs.client.registered_job import DeclaresJobs
from nimburion.jobs.declaration.job import Job, JobFunction
from nimburion.jobs.handling.context import CURRENT, Context, RequestContext
from nimburion.jobs.processor import Processor

try:
    from flask import Blueprint, Flask, Response, current_app, has_app_context, request
    from werkzeug.exceptions import HTTPException
except ModuleNotFoundError as _missing:
    raise explain_missing(_missing, "flask") from None

if TYPE_CHECKING:
    from nimburion.server.access import Caller
    from nimburion.server.sync_dashboard import SyncDashboard

__all__ = ["FlaskJobs", "find_processor", "load_configuration", "make_dashboard"]

EXTENSION = "nimburion"
"""The key of the processor in `app.extensions`."""
_DASHBOARD = "nimburion_dashboard"
_PREFIX = "NIMBURION_"
_FILE_KEY = "config"
"""The key without prefix that names a configuration file; all others are settings of jobs."""

P = ParamSpec("P")
T = TypeVar("T")


class FlaskJobs(DeclaresJobs):
    """The jobs of a Flask application, or of a package that several applications use.

    `init_app` gives an application a processor, with the settings of `load_configuration`. Each
    application has its own, so tests can make as many applications as they like.

    In code that Flask calls, `processor` is that of the current application. Other code needs an
    application context: `with app.app_context():`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._declared: list[type[Job] | JobFunction[..., ..., Any, Any]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give the application a processor, and register the jobs with it.

        Jobs that are declared later, for example in modules that are imported later, are registered
        when the processor is next used. Nothing is connected. `ConfigurationError` is raised if a
        setting is wrong.
        """
        if EXTENSION not in app.extensions:
            processor = Processor.from_config(load_configuration(app))
            _run_in_app_context(processor, app)
            app.wsgi_app = _RequestContextMiddleware(app.wsgi_app)  # type: ignore[method-assign]
            app.extensions[EXTENSION] = _AppJobs(processor)
        app.extensions[EXTENSION].sources.append(self._declared)

    @property
    def processor(self) -> Processor:
        """The processor of the current application."""
        return find_processor()

    def register(self, *jobs: type[Job] | JobFunction[..., ..., Any, Any]) -> None:
        """Register `Job` classes and `@job` functions with each application."""
        self._declared += jobs

    def _find_processor(self) -> Processor:
        return find_processor()


class _AppJobs:
    """The processor of one application, and the lists of jobs to register with it."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._registered = 0
        self.sources: list[list[type[Job] | JobFunction[..., ..., Any, Any]]] = []

    def get_processor(self) -> Processor:
        """Return the processor, with all jobs that are declared by now."""
        if self._registered != sum(map(len, self.sources)):
            declared = [job for source in self.sources for job in source]
            known = self._processor.registry
            missing = [
                job
                for job in declared
                if (handler := known.get(job.__job__.name)) is None or handler.target is not job
            ]
            if missing:
                self._processor.register(*missing)
            self._registered = len(declared)
        return self._processor


WSGIApp = Callable[[dict[str, Any], Any], Any]


class _RequestContextMiddleware:
    """A WSGI middleware: the jobs that a request enqueues inherit its id and its trace."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401
        """Answer a request with the wrapped application."""
        names = ("HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT")
        token = CURRENT.set(RequestContext.read(*map(environ.get, names)))
        try:
            return self._app(environ, start_response)
        finally:
            CURRENT.reset(token)


def find_processor(app: Flask | None = None) -> Processor:
    """Return the processor of an application; without an argument, of the current one.

    Raises `NotOpen` outside of an application context, and `DefinitionError` if the application has
    no processor.
    """
    if app is None and not has_app_context():
        raise NotOpen(
            "no Flask application is active here, so there is no processor: write "
            "`with app.app_context():` around the call"
        )
    chosen: Flask = current_app if app is None else app
    found = chosen.extensions.get(EXTENSION)
    if not isinstance(found, _AppJobs):
        raise DefinitionError(
            f"the Flask application {chosen.name!r} has no processor: write `jobs.init_app(app)` "
            "where the application is made"
        )
    return found.get_processor()


def load_configuration(app: Flask, file: str | None = None, **arguments: object) -> Config:
    """Return the configuration of an application: `app.config` over environment and file.

    `NIMBURION_URL`, `NIMBURION_CONCURRENCY` and so on are the settings under `jobs:`.
    `NIMBURION_CONFIG` names a configuration file, unless `file` does. `arguments` are sections, as
    `config.load` takes them; they win. `ConfigurationError` is raised if a setting is unknown or
    wrong.
    """
    settings: dict[str, object] = app.config.get_namespace(_PREFIX)
    configured_file = settings.pop(_FILE_KEY, None)
    own = {"jobs": settings} if settings else {}
    return config.load_layers(file or configured_file, own, arguments)  # type: ignore[arg-type]


def make_dashboard(find_caller: Callable[[], Caller | None]) -> Blueprint:
    """Return a blueprint with the dashboard, for those whom the application has signed in.

    ```python
    def find_caller() -> Caller | None:
        if not current_user.is_authenticated:
            abort(redirect(url_for("sign_in", next=request.full_path)))
        if not current_user.is_staff:
            return None
        return Caller(current_user.name, frozenset({"read", "operate"}))


    app.register_blueprint(make_dashboard(find_caller), url_prefix="/jobs")
    ```

    The dashboard is then at `/jobs/dashboard`, unless a view of the application answers there;
    choose a prefix that has none. `find_caller` is called in each request, and returns who sends
    it, with their rights: `read`, `payloads`, `stacks`, `operate`, `admin`. None, or a right that
    is missing, is answered with status 403. So is a redirect, if the script of a page sends the
    request: the script could not follow it. The audit records hold the name of the caller.

    It needs the extra `server`.
    """
    try:
        from nimburion.server.sync_dashboard import BufferedRequest
    except ModuleNotFoundError as missing:
        raise explain_missing(missing, "flask", "server") from None
    made = Blueprint("nimburion", __name__)

    def show_dashboard(path: str = "") -> Response:
        dashboard = _find_dashboard()
        answer = dashboard.answer(
            BufferedRequest(
                method=request.method,
                prefix=(request.root_path + request.path.removesuffix(path)).rstrip("/"),
                path=f"/{path}",
                query=request.query_string.decode("latin-1"),
                headers=tuple(request.headers.items()),
                body=_read_body(dashboard.max_body),
                scheme=request.scheme,
                caller=_find_caller(find_caller),
            )
        )
        return Response(answer.body, answer.status, list(answer.headers))

    methods = ["GET", "HEAD", "POST"]
    made.add_url_rule("/", "dashboard", show_dashboard, methods=methods)
    made.add_url_rule("/<path:path>", "dashboard", show_dashboard, methods=methods)
    return made


def _find_caller(find_caller: Callable[[], Caller | None]) -> Caller | None:
    """Return who sends the request. A redirect is for people only, not for the script of a page."""
    try:
        return find_caller()
    except HTTPException as error:
        is_script = "HX-Request" in request.headers or "format" in request.args
        if is_script and 300 <= error.get_response().status_code < 400:
            return None
        raise


def _read_body(max_size: int) -> bytes:
    """Return the body of the request, or the first byte too many."""
    body = request.stream.read(max_size + 1)
    if not body and request.form:  # the application has read the form
        return urlencode(list(request.form.items(multi=True))).encode()
    return body


def _find_dashboard() -> SyncDashboard:
    """Return the dashboard of the current application, made at the first request."""
    from nimburion.server.sync_dashboard import SyncDashboard

    app: Flask = current_app
    found = app.extensions.get(_DASHBOARD)
    if found is None:
        made = SyncDashboard(find_processor(), load_configuration(app))
        found = app.extensions.setdefault(_DASHBOARD, made)
    assert isinstance(found, SyncDashboard)
    return found


def _run_in_app_context(processor: Processor, app: Flask) -> None:
    """Let each handler of the processor run in a context of the application."""

    @processor.around_handler
    def app_context(_: Context) -> Iterator[None]:
        with app.app_context():
            yield

    @processor.around_handler
    async def async_app_context(_: Context) -> AsyncIterator[None]:
        with app.app_context():
            yield
