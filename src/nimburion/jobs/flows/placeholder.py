"""Placeholders of results that are not known while a flow is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from nimburion.core.errors import InvalidJob

if TYPE_CHECKING:
    from nimburion.jobs.flows.flow import Member, Members


class MemberResult:
    """The result of a member of a flow, in place of an argument of another member.

    For type checkers it is the result itself. The worker fills in the result. Every other use
    raises `InvalidJob`.
    """

    __slots__ = ("source",)

    def __init__(self, source: Member[object] | Members[object]) -> None:
        self.source: Member[object] | Members[object] = source
        """The member, or the group with the list of its results."""

    def __repr__(self) -> str:
        return f"<the result of member {self.source.name!r}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):  # Python and its libraries look for these
                raise AttributeError(name)
            self._refuse()

        def _refuse(self, *_: object) -> NoReturn:
            raise InvalidJob(
                f"the result of member {self.source.name!r} is not known while the flow is built; "
                "pass it as a whole argument of another member, and use it in that job"
            )

        __str__ = __bool__ = __int__ = __float__ = __index__ = __bytes__ = __format__ = _refuse
        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
        __len__ = __iter__ = __next__ = __contains__ = __getitem__ = __call__ = _refuse
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
        __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
        __and__ = __rand__ = __or__ = __ror__ = __neg__ = __pos__ = __abs__ = _refuse
        __await__ = __aiter__ = __enter__ = __fspath__ = _refuse
