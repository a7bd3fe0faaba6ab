"""The documentation as a site: `python3 dev.py docs` builds it from `docs/` into `site/`.

The pages stay plain Markdown that reads well in the repository. The build adds what a site needs:
navigation, a reference from the docstrings, and Markdown copies of the pages for programs.
"""
