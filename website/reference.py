"""The reference of the public modules, as Markdown from signatures and docstrings."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, cast, get_overloads, is_typeddict

from nimburion import integrations
from nimburion.jobs.client.sync import SyncMethod

_MODULES = (
    "nimburion",
    "nimburion.errors",
    "nimburion.types",
    "nimburion.scheduler",
    "nimburion.backends",
    "nimburion.backends.memory",
    "nimburion.backends.sqlite",
    "nimburion.backends.redis",
    "nimburion.backends.postgres",
    "nimburion.config",
    "nimburion.server",
    "nimburion.testing",
)
INTEGRATIONS = Path(integrations.__file__).parent
MADE_BY_US = frozenset(
    {
        *(
            "Context",
            "BatchContext",
            "DurableContext",
            "ChildJob",
            "RegisteredJob",
            "SyncProcessor",
            "Status",
            "Health",
        ),
        *("QueueActions", "LimitActions", "DeadLetters", "TenantActions", "WorkerActions"),
        *("Schedules", "BulkActions", "AuditLog"),
    }
)
"""Classes that users receive and never make, so that their constructors are not shown."""
ROOT, ERRORS = "nimburion", "nimburion.errors"
ALSO_SHOWN = MappingProxyType(
    {
        ROOT: (
            "nimburion.jobs.options.enqueue_options:EnqueueOptions",
            "nimburion.jobs.options.policy:PolicyOptions",
            "nimburion.scheduler.declarations:ScheduleOptions",
            "nimburion.jobs.client.registered_job:RegisteredJob",
            "nimburion.jobs.processor:SyncProcessor",
            "nimburion.jobs.durable.context:ChildJob",
            "nimburion.actions.queues:QueueActions",
            "nimburion.actions.limits:LimitActions",
            "nimburion.actions.dead_letters:DeadLetters",
            "nimburion.actions.tenants:TenantActions",
            "nimburion.actions.workers:WorkerActions",
            "nimburion.scheduler.schedules:Schedules",
            "nimburion.actions.bulk:BulkActions",
            "nimburion.actions.filters:FilterOptions",
            "nimburion.actions.audit_log:AuditLog",
        )
    }
)
"""What the signatures of a module name and its users do not import."""
LINE = 88
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Member(NamedTuple):
    """A method, property or field of a class."""

    name: str
    signature: str
    docstring: str
    is_field: bool = False


def list_modules() -> list[str]:
    """Return the public modules; each integration that lists its names is one."""
    sources = [*INTEGRATIONS.glob("*.py"), *INTEGRATIONS.glob("*/__init__.py")]
    names = [
        path.parent.name if path.name == "__init__.py" else path.stem
        for path in sources
        if re.search(r"^__all__ = \[.", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return [*_MODULES, *(f"nimburion.integrations.{name}" for name in sorted(names))]


def make_page(name: str) -> str:
    """Return the Markdown page of a module."""
    module = import_module(name)
    others = [find_object(path) for path in ALSO_SHOWN.get(name, ())]
    # What a module makes when it is first asked for, as Django's processor, is in its docstring.
    names = [one for one in module.__all__ if name == ROOT or one in vars(module)]
    objects = [(one, getattr(module, one)) for one in names]
    errors = [title for title, value in objects if name not in (ROOT, ERRORS) and is_error(value)]
    shown = [pair for pair in objects if pair[0] not in errors and not is_plain(pair[1])]
    parts = [f"# `{name}`", format_docstring(inspect.getdoc(module) or "")]
    parts += [describe(title, value) for title, value in shown]
    if errors:
        links = [f"[`{title}`]({ERRORS}.md#{title})" for title in errors]
        parts += [
            "## Errors",
            "You can import these errors from here too: " + ", ".join(links) + ".",
        ]
    if others:
        parts.append("## Types that these signatures name")
        parts += [describe(one.__name__, one, level=3) for one in others]
    return "\n\n".join(part for part in parts if part) + "\n"


def find_object(path: str) -> type:
    """Return the class that `module:name` names."""
    module, _, name = path.partition(":")
    found: type = getattr(import_module(module), name)
    return found


def is_plain(value: object) -> bool:
    """Tell whether there is nothing to describe: a constant, or a module with its own page.

    It looks at the type only: a lazy object must not be made.
    """
    return not issubclass(type(value), type | FunctionType)


def is_error(value: object) -> bool:
    """Tell whether it is an exception, which the page of `nimburion.errors` describes."""
    return issubclass(type(value), type) and issubclass(cast("type", value), BaseException)


def describe(name: str, value: Any, level: int = 2) -> str:  # noqa: ANN401 (any public object)
    """Return the section of a class or a function."""
    heading = f"{'#' * level} `{name}` {{ #{name} }}"
    if not inspect.isclass(value):
        signature = format_signatures(name, value)
        return "\n\n".join([heading, signature, format_docstring(inspect.getdoc(value) or "")])
    own = own_docstring(value)
    parts = [heading, fence(describe_class(name, value)), format_docstring(own)]
    members = list(list_members(value))
    if fields := [describe_field(member) for member in members if member.is_field]:
        parts.append("\n".join(fields))
    for member in members:
        if member.is_field:
            continue
        title = f"{name}.{member.name}"
        parts.append(f"{'#' * (level + 1)} `{title}` {{ #{title} }}")
        parts += [fence(member.signature), format_docstring(member.docstring)]
    return "\n\n".join(part for part in parts if part)


def describe_field(member: Member) -> str:
    """Return a field as an item of a list."""
    first, *others = re.split(r"\n\s*\n", member.docstring)
    text = f": {' '.join(first.split())}" if first else ""
    more = "".join(f"\n\n    {' '.join(one.split())}" for one in others)
    return f"- `{member.signature}`{text}{more}"


def own_docstring(value: type) -> str:
    """Return the docstring of a class itself; one that it inherits says nothing about it."""
    text = vars(value).get("__doc__")
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def describe_class(name: str, value: type) -> str:
    """Return the line that declares a class, with its constructor where it has one."""
    bases = [base.__name__ for base in value.__bases__ if base.__module__ != "builtins"]
    if issubclass(value, BaseException):
        bases = [base.__name__ for base in value.__bases__]
    for owner in value.__mro__ if name not in MADE_BY_US else ():
        constructor = vars(owner).get("__init__")
        if inspect.isfunction(constructor) and owner.__module__.startswith("nimburion"):
            source = find_function(constructor)
            if source is not None:
                return format_call(f"class {name}", source.args)
    return f"class {name}({', '.join(bases)})" if bases else f"class {name}"


def list_members(value: type) -> Iterator[Member]:
    """Yield the public members of a class, its own first, then those of its bases here."""
    seen = set[str]()
    for owner in list_owners(value):
        if not owner.__module__.startswith("nimburion"):
            continue
        for member in list_own_members(owner):
            if member.name not in seen and not member.name.startswith("_"):
                seen.add(member.name)
                yield member


def list_owners(value: type) -> list[type]:
    """Return a class and its bases; a TypedDict forgets them in its `__mro__`."""
    if not is_typeddict(value):
        return list(value.__mro__)
    tree = find_class(value)
    names = [ast.unparse(base) for base in tree.bases] if tree is not None else []
    bases = [vars(import_module(value.__module__)).get(name) for name in names]
    found = [base for base in bases if base is not None and is_typeddict(base)]
    return [value, *(owner for base in found for owner in list_owners(base))]


def list_own_members(owner: type) -> Iterator[Member]:
    """Yield the members that a class body declares, in its order."""
    tree = find_class(owner)
    if tree is None:
        return
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if (member := describe_method(owner, node)) is not None:
                yield member
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield Member(node.target.id, ast.unparse(node), read_string(after), is_field=True)
        elif isinstance(node, ast.Assign) and issubclass(owner, enum.Enum):
            yield Member(
                ast.unparse(node.targets[0]), ast.unparse(node), read_string(after), is_field=True
            )


def describe_method(owner: type, node: FunctionNode) -> Member | None:
    """Return a method; None for a version that only type checkers read."""
    decorators = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
    if decorators & {"overload", "typing.overload"} or f"{node.name}.setter" in decorators:
        return None
    value = inspect.getattr_static(owner, node.name)
    value = getattr(value, "__func__", value)
    docstring = inspect.getdoc(value) or ""
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        returns = f": {ast.unparse(node.returns)}" if node.returns else ""
        return Member(node.name, f"{node.name}{returns}  # property", docstring)
    overloads = get_overloads(value) if callable(value) else []
    if overloads:
        return Member(node.name, "\n".join(map(format_function, overloads)), docstring)
    if isinstance(value, SyncMethod) and (source := find_function(value.method)) is not None:
        return Member(node.name, format_definition(source).removeprefix("async "), docstring)
    return Member(node.name, format_definition(node), docstring)


def read_string(node: ast.stmt | None) -> str:
    """Return the text that documents the field before it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return inspect.cleandoc(str(node.value.value))
    return ""


def find_class(value: type) -> ast.ClassDef | None:
    """Return the statement that declares a class."""
    found = list_statements(value.__module__).get(value.__qualname__, [])
    return next((node for node in found if isinstance(node, ast.ClassDef)), None)


def find_function(value: Any) -> FunctionNode | None:  # noqa: ANN401 (whatever inspect unwraps)
    """Return the statement that declares a function, also if it is one of several overloads."""
    function = inspect.unwrap(value)
    if not isinstance(function, FunctionType):
        return None
    line = function.__code__.co_firstlineno
    for node in list_statements(function.__module__).get(function.__qualname__, []):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = [node.lineno, *(one.lineno for one in node.decorator_list)]
            if min(lines) == line:
                return node
    return None


@cache
def list_statements(module: str) -> Mapping[str, list[ast.stmt]]:
    """Return the classes and functions of a module by their qualified names."""
    try:
        text = inspect.getsource(import_module(module))
    except (OSError, TypeError):  # built in
        return {}
    found: dict[str, list[ast.stmt]] = {}
    collect_statements(ast.parse(text).body, "", found)
    return found


def collect_statements(body: list[ast.stmt], prefix: str, found: dict[str, list[ast.stmt]]) -> None:
    """Add the classes and functions of a body, and those inside its classes."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(prefix + node.name, []).append(node)
        if isinstance(node, ast.ClassDef):
            collect_statements(node.body, f"{prefix}{node.name}.", found)


def format_signatures(name: str, value: Callable[..., object]) -> str:
    """Return the fenced signature of a function, or each of its overloads."""
    versions = get_overloads(value) or [value]
    texts = [text for text in map(format_function, versions) if text]
    return fence("\n".join(texts or [f"def {name}(...)"]))


def format_function(value: Callable[..., object]) -> str:
    """Return the first line of a function."""
    node = find_function(value)
    return format_definition(node) if node is not None else ""


def format_definition(node: FunctionNode) -> str:
    """Return `def name(…) -> …` without a body."""
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return format_call(f"{keyword} {node.name}", node.args, returns)


def format_call(start: str, arguments: ast.arguments, returns: str = "") -> str:
    """Return a signature on one line, or with one parameter a line when it is long."""
    parameters = list(list_parameters(arguments))
    line = f"{start}({', '.join(parameters)}){returns}"
    if len(line) <= LINE:
        return line
    inner = "".join(f"    {one},\n" for one in parameters)
    return f"{start}(\n{inner}){returns}"


def list_parameters(arguments: ast.arguments) -> Iterator[str]:
    """Yield the parameters as written, without `self` and `cls`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for number, (one, default) in enumerate(
        zip(positional, [*padding, *arguments.defaults], strict=True), 1
    ):
        if one.arg not in {"self", "cls"}:
            yield format_parameter(one, default)
        if number == len(arguments.posonlyargs) and one.arg not in {"self", "cls"}:
            yield "/"
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield format_parameter(one, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def format_parameter(one: ast.arg, default: ast.expr | None) -> str:
    """Return `name: type = default`."""
    if default is None:
        return ast.unparse(one)
    sign = " = " if one.annotation else "="
    return f"{ast.unparse(one)}{sign}{ast.unparse(default)}"


def fence(code: str) -> str:
    """Return a fenced block of Python."""
    return f"```python\n{code}\n```"


def format_docstring(text: str) -> str:
    """Return a docstring as Markdown: sessions are fenced, and sections become lists."""
    text = re.sub(r"(?m)(?<!\n\n)^((?:>>> |\.\.\. |>>>$).*(?:\n(?!\n).*)*)", r"\n\1", text)
    parts = [
        f"```pycon\n{part}\n```" if part.startswith(">>>") else format_section(part)
        for part in re.split(r"\n\s*\n", text)
    ]
    return "\n\n".join(parts).strip()


def format_section(part: str) -> str:
    """Return a paragraph; `Args:` and its like become a list."""
    found = re.match(r"(Args|Raises|Returns|Yields):\n((?: +.*\n?)+)", part)
    if not found:
        return part
    title = {"Args": "Arguments"}.get(found[1], found[1])
    items = re.split(r"\n(?=\w|`)", textwrap.dedent(found[2]).strip())
    pairs = [" ".join(item.split()).partition(": ") for item in items]
    lines = [f"- `{name.strip('`')}`: {rest}" if rest else f"- {name}" for name, _, rest in pairs]
    return f"**{title}**\n\n" + "\n".join(lines)
