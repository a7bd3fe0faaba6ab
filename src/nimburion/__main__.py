"""`python -m nimburion` is the command line."""

from __future__ import annotations

from nimburion.cli import main

if __name__ == "__main__":
    main()
