"""What nimburion does in a second, measured beside a peer in one run.

`python3 dev.py bench` prints every table; `python3 dev.py bench drain pickup` prints two. Public
API and default settings only. Done is what the backend's own counts say.
"""
