"""`python -m website PROGRAM`: build the site with this program of the generator."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from website.build import ROOT, BuildFailed, build_site, run_zensical


def main(program: Path) -> int:
    """Build the site into `site/`; return the exit code."""
    target = ROOT / "site"
    try:
        count = build_site(ROOT / "build" / "site", target, partial(run_zensical, program))
    except BuildFailed as error:
        print(f"the site was not built:\n{error}", file=sys.stderr)
        return 1
    print(f"{count} pages are in {target.relative_to(ROOT)}/; open {target}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
