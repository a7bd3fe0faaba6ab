"""Inspect job classes and functions: their parameters, types and return types."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from msgspec import NODEFAULT

from nimburion.core.errors import DefinitionError
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.jobs.handling.context import Context
from nimburion.jobs.payloads.fields import JobField

_CONTEXTS = ("Context", "BatchContext", "DurableContext")
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature(NamedTuple):
    """The parameters of a job function."""

    takes_context: bool
    fields: list[JobField]
    positional_only: int
    """The number of fields, from the first, that must be passed by position."""


def read_class_fields(name: str, cls: type) -> list[JobField]:
    """Return the fields of a job class, with resolved types."""
    members = cls.__dataclass_fields__  # type: ignore[attr-defined]
    hints = {key: _resolve_in_class(name, cls, key) for key in members}
    return [
        JobField(
            member.name,
            hints[member.name],
            _to_msgspec_default(member.default),
            _to_msgspec_default(member.default_factory),
        )
        for member in dataclasses.fields(cls)
        if member.init
    ]


def read_signature(name: str, function: Callable[..., Any]) -> Signature:
    """Return the parameters of a job function, with resolved types.

    `DefinitionError` is raised when a parameter cannot be an argument of a job.
    """
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[:1]:
        _check_context_class(name, function, parameter)
    takes_context = bool(parameters) and _is_context(parameters[0])
    own = parameters[1:] if takes_context else parameters
    return Signature(
        takes_context,
        [_make_field(name, function, parameter) for parameter in own],
        sum(parameter.kind is inspect.Parameter.POSITIONAL_ONLY for parameter in own),
    )


def takes_durable_context(function: Callable[..., Any], position: int = 0) -> bool:
    """Return whether the parameter at a position is annotated as `DurableContext`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # without a signature
        return False
    return len(parameters) > position and _is_durable(parameters[position])


def _check_context_class(
    name: str, function: Callable[..., Any], parameter: inspect.Parameter
) -> None:
    """Raise `DefinitionError` if a parameter is annotated as a context of the application's own.
    The worker makes the contexts.
    """
    annotation = parameter.annotation
    if isinstance(annotation, str):
        module = getattr(inspect.unwrap(function), "__globals__", {})
        annotation = module.get(annotation.strip("'\" ").partition("[")[0])
    cls = typing.get_origin(annotation) or annotation
    if not isinstance(cls, type) or not issubclass(cls, Context | BatchContext):
        return
    known = next(base.__name__ for base in cls.__mro__ if base.__name__ in _CONTEXTS)
    if cls.__name__ != known:
        raise DefinitionError(
            f"job {name!r}, {describe_place(function)}: the worker makes the context, and makes no "
            f"{cls.__name__}; write `{parameter.name}: {known}`, write functions that take the "
            f"context in place of the methods of {cls.__name__}, and keep what they use in "
            "`ctx.state`"
        )


def describe_place(function: Callable[..., Any]) -> str:
    """Return the file and the line of a function, or its name if that is not known."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else _describe(function)


def read_batch_signature(name: str, function: Callable[..., Any]) -> Signature:
    """Return the parameters of a batch handler. Its only field has the type of one job's argument,
    where the function takes a list of them.
    """
    signature = read_signature(name, function)
    kinds = [typing.get_origin(field.type) for field in signature.fields]
    if kinds not in ([list], [collections.abc.Sequence]):
        raise DefinitionError(
            f"job {name!r}: a batch handler takes one list with the arguments of its jobs, such as "
            "`documents: list[Document]`, after an optional BatchContext"
        )
    (field,) = signature.fields
    (argument,) = typing.get_args(field.type)
    return signature._replace(fields=[field._replace(type=argument, default=NODEFAULT)])


def read_batch_return_type(name: str, function: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Return the type of one job's result, where a batch handler returns a list of results and
    exceptions; `DefinitionError` for another annotation than that or None.
    """
    resolved = read_return_type(name, function)
    if resolved is Any or resolved is type(None) or resolved is None:
        return resolved
    if typing.get_origin(resolved) not in (list, tuple, collections.abc.Sequence):
        raise DefinitionError(
            f"job {name!r}: a batch handler returns None, or a list with one result or exception "
            "for each job, such as `-> list[int | Exception]`"
        )
    kind = typing.get_args(resolved)[0]
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return type(None) if _is_exception(kind) else kind
    kinds = tuple(each for each in typing.get_args(kind) if not _is_exception(each))
    return typing.Union[kinds] if kinds else type(None)  # noqa: UP007 (made at run time)


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def check_takes_context(name: str, cls: type) -> None:
    """Raise `DefinitionError` when `process` of a job class cannot be called with only the
    context."""
    process = inspect.getattr_static(cls, "process")
    own = () if isinstance(process, classmethod | staticmethod) else (None,)
    try:
        signature = inspect.signature(cls.process)  # type: ignore[attr-defined]
    except (TypeError, ValueError):  # not a function, or without a signature
        return
    try:
        signature.bind(*own, None)
    except TypeError:
        raise DefinitionError(
            f"job {name!r}: process{signature} cannot be called with the context; write "
            "`async def process(self, ctx)`, or `def`"
        ) from None
    for parameter in list(signature.parameters.values())[len(own) : len(own) + 1]:
        _check_context_class(name, cls.process, parameter)  # type: ignore[attr-defined]


def read_return_type(name: str, function: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Return the annotated return type of the handler; Any without an annotation."""
    try:
        annotation = inspect.signature(function).return_annotation
    except ValueError:  # a built-in without a signature
        return Any
    if annotation is inspect.Signature.empty:
        return Any
    resolved = _resolve(f"job {name!r}, return type", function, annotation)
    return Any if resolved in (typing.NoReturn, typing.Never) else resolved


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function returns a coroutine.

    `DefinitionError` is raised for a generator, because a call of it runs nothing.
    """
    target = function if inspect.isroutine(function) else _find_call_method(function)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise DefinitionError(
            f"{_describe(function)} is a generator: calling it runs nothing; use return, not yield"
        )
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(target)


def _find_call_method(instance: Any) -> Any:  # noqa: ANN401 (any callable)
    return type(instance).__call__


def _is_context(parameter: inspect.Parameter) -> bool:
    """Return whether the parameter is annotated as `Context`, or named `ctx` without another
    type."""
    if parameter.kind not in _BY_POSITION:
        return False
    if _names_context(parameter.annotation):
        return True
    untyped = parameter.annotation in (inspect.Parameter.empty, Any, "Any", "typing.Any")
    return parameter.name == "ctx" and untyped


def _names_context(annotation: object) -> bool:
    if isinstance(annotation, str):
        return annotation.strip("'\" ").partition("[")[0].rpartition(".")[2] in _CONTEXTS
    cls = typing.get_origin(annotation) or annotation  # the class of `Context[State]`
    return isinstance(cls, type) and issubclass(cls, Context | BatchContext)


def _is_durable(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        return annotation.strip("'\" ").partition("[")[0].rpartition(".")[2] == "DurableContext"
    cls = typing.get_origin(annotation) or annotation
    bases = cls.__mro__ if isinstance(cls, type) else ()
    return any(base.__name__ == "DurableContext" for base in bases)


def _make_field(name: str, function: Callable[..., Any], parameter: inspect.Parameter) -> JobField:
    what = f"job {name!r}, parameter {parameter.name!r}"
    if parameter.name == "self":
        raise DefinitionError(
            f"{what}: a method has no instance when it runs as a job; use a function, or a Job "
            "class with `def process(self, ctx)`"
        )
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise DefinitionError(f"{what}: name each argument; * and ** cannot be checked")
    if _names_context(parameter.annotation):
        raise DefinitionError(f"{what}: the context is the first parameter, and passed by position")
    if parameter.annotation is inspect.Parameter.empty:
        raise DefinitionError(f"{what}: annotate it; its type is what `enqueue` checks")
    return JobField(
        parameter.name,
        _resolve(what, function, parameter.annotation),
        NODEFAULT if parameter.default is inspect.Parameter.empty else parameter.default,
        keyword_only=parameter.kind is inspect.Parameter.KEYWORD_ONLY,
    )


def _resolve_in_class(name: str, cls: type, key: str) -> Any:  # noqa: ANN401
    """Return the type of one field, resolved in the module and class that declare it."""
    owner = next(base for base in cls.__mro__ if key in inspect.get_annotations(base))
    annotation = inspect.get_annotations(owner)[key]
    what = f"job {name!r}, field {key!r}"
    if isinstance(annotation, dataclasses.InitVar) or str(annotation).startswith(
        ("InitVar", "dataclasses.InitVar")
    ):
        raise DefinitionError(
            f"{what}: an InitVar is not stored, so the job would run without it; use a field"
        )
    return _resolve(what, owner, annotation)


def _resolve(what: str, owner: Any, annotation: Any) -> Any:  # noqa: ANN401
    namespace = vars(inspect.getmodule(owner) or SimpleNamespace())
    namespace = getattr(inspect.unwrap(owner), "__globals__", namespace)
    holder = SimpleNamespace(__annotations__={"it": annotation})
    own = {owner.__name__: owner, **vars(owner)} if isinstance(owner, type) else None
    try:
        return typing.get_type_hints(holder, namespace, own, include_extras=True)["it"]
    except Exception as error:
        raise DefinitionError(
            f"{what}: the annotation {annotation!r} cannot be resolved ({error}); "
            "import the type at module level, not only under TYPE_CHECKING"
        ) from error


def _to_msgspec_default(default: object) -> object:
    return NODEFAULT if default is dataclasses.MISSING else default


def _describe(function: object) -> str:
    return getattr(function, "__qualname__", repr(function))
