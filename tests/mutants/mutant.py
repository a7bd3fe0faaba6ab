"""What a mutant is, and how it finds its place in the source.

`original` is a template: `$name` stands for any identifier, the same wherever the name returns, so
a rename leaves mutants as they are. `$$` is a dollar sign. The template must match exactly once in
the files of `place`; `replacement` may use the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PLACEHOLDER = re.compile(r"\$\$|\$([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Mutant:
    """One change of a line that some test must notice."""

    name: str
    place: str
    """A folder below `src/nimburion` and the kind of file: `backends/sqlite/*.py`."""
    original: str
    replacement: str
    selection: tuple[str, ...]
    """Arguments of pytest."""
    deep: bool = False
    """Too slow for every run."""

    def find(self, package: Path) -> tuple[Path, re.Match[str]]:
        """The only file and place that `original` matches; `AssertionError` where there is none, or
        more than one."""
        folder, _, pattern = self.place.rpartition("/")
        expression = compile_template(self.original)
        found = [
            (path, match)
            for path in sorted((package / folder).rglob(pattern))
            for match in expression.finditer(path.read_text(encoding="utf-8"))
        ]
        places = ", ".join(str(path.relative_to(package)) for path, _ in found) or "nowhere"
        assert len(found) == 1, f"{self.name}: found {places}, must be found once in {self.place}"
        return found[0]

    def change(self, package: Path) -> tuple[Path, str]:
        """Return the file that changes, and its new text."""
        path, match = self.find(package)
        text = path.read_text(encoding="utf-8")
        changed = _PLACEHOLDER.sub(lambda one: match[one[1]] if one[1] else "$", self.replacement)
        return path, text[: match.start()] + changed + text[match.end() :]

    def apply(self, package: Path) -> None:
        """Break the product below `package`."""
        path, text = self.change(package)
        path.write_text(text, encoding="utf-8")


def compile_template(template: str) -> re.Pattern[str]:
    """The expression that a template stands for."""
    parts, end = [], 0
    names: set[str] = set()
    for one in _PLACEHOLDER.finditer(template):
        parts.append(re.escape(template[end : one.start()]))
        end = one.end()
        if one[1] is None:
            parts.append(re.escape("$"))
        elif one[1] in names:
            parts.append(f"(?P={one[1]})")
        else:
            names.add(one[1])
            parts.append(rf"(?P<{one[1]}>\b[A-Za-z_]\w*\b)")
    return re.compile("".join([*parts, re.escape(template[end:])]))
