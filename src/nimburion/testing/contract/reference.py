"""Generate the reference page of the contract: its promises by operation, state and token.

python -m nimburion.testing.contract.reference docs/reference/contract-cases.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

from nimburion.testing.contract.consuming.token_cases import (
    AFTER,
    AFTER_REQUEST,
    TOKEN_CASES,
    TokenCase,
)
from nimburion.testing.contract.consuming.tokens import SETTLEMENTS
from nimburion.testing.contract.job_states import JOB_STATES
from nimburion.testing.contract.maintaining.operators import OPERATIONS, expected
from nimburion.testing.contract.suite import BackendContract

Case = tuple[str, str, int]
"""Name, promise and number of variants of a case."""

HEAD = """\
# The contract, case by case

These are the cases that every backend must pass: {functions} promises, {cases} cases with their
variants. This page is generated from the suite `nimburion.testing.contract`. Do not edit it. To
generate it, run

    python -m nimburion.testing.contract.reference docs/reference/contract-cases.md
"""

SETTLED = """
## Who may settle

The rows are the state of the job and the token that is sent. The columns are the settlement. `→`
names the state that follows. Without it, the whole record stays unchanged.
"""

OPERATED = """
## Operations by state

Each cell is the answer of an operation. `→` names the state that follows. Without it, the whole
record stays unchanged.
"""


def contract_page() -> str:
    """Return the whole page as Markdown."""
    groups = list(themes())
    every = [case for _, cases in groups for case in cases]
    head = HEAD.format(functions=len(every), cases=sum(count for *_, count in every))
    parts = [head, SETTLED, token_table(), OPERATED, operation_table(), "\n## All cases\n"]
    for title, cases in groups:
        parts += [f"\n### {title}\n\n", *map(format_case, cases)]
    return "".join(parts)


def token_table() -> str:
    """Return the table of settlements by token case."""
    rows = [
        [case.state, case.token, *(_answer(case, kind) for kind in SETTLEMENTS)]
        for case in TOKEN_CASES
    ]
    return table(["the job is", "the token is", *SETTLEMENTS], rows)


def _answer(case: TokenCase, kind: str) -> str:
    if case.answer != "done":
        return case.answer
    after = AFTER_REQUEST if "cancel requested" in case.state else AFTER
    return f"done → {after[kind]}"


def operation_table() -> str:
    """Return the table of operations by state of the job."""
    rows = [
        [state, *(_outcome(operation, state) for operation in OPERATIONS)] for state in JOB_STATES
    ]
    return table(["the job is", *OPERATIONS], rows)


def _outcome(operation: str, state: str) -> str:
    answer, after = expected(operation, state)
    return answer if state.startswith(after) else f"{answer} → {after}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def themes() -> Iterator[tuple[str, list[Case]]]:
    """Yield the title and the cases of each group, in the order of the suite."""
    for group in BackendContract.__bases__:
        found = [
            make_case(name, function)
            for name, function in vars(group).items()
            if name.startswith("test_")
        ]
        yield (group.__doc__ or group.__name__).strip().rstrip("."), found


def make_case(name: str, function: Callable[..., object]) -> Case:
    """Return the entry of a case function."""
    marks = getattr(function, "pytestmark", [])
    variants = [len(mark.args[1]) for mark in marks if mark.name == "parametrize"]
    return name, inspect.getdoc(function) or "", prod(variants)


def format_case(case: Case) -> str:
    """Format a case as a list item."""
    name, promise, count = case
    words = name.removeprefix("test_").replace("_", " ").strip()
    variants = f" ({count} variants)" if count > 1 else ""
    more = f": {' '.join(promise.split())}" if promise else ""
    return f"- {words}{variants}{more}\n"


def main(arguments: list[str]) -> None:
    """Write the page to the path that is the only argument.

    Raises:
        SystemExit: there is another number of arguments, or the path starts with a hyphen.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit("usage: python -m nimburion.testing.contract.reference PATH")
    Path(arguments[0]).write_text(contract_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
