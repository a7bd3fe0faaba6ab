"""The actions of the person who runs the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion.actions import Actions
    from nimburion.core.backend import Backend


def make_actions(backend: Backend) -> Actions:
    """Return the actions of the user of this process, who has all rights."""
    # Only for a command that changes something.
    from nimburion.actions import Actions
    from nimburion.actions.operator import make_process_operator

    return Actions(backend, make_process_operator("cli"))
