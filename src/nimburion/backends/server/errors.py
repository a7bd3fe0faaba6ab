"""Map the errors between a backend and its server to the errors of the contract."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from typing import cast

from nimburion.core.errors import BackendUnavailable, NimburionError, NotSupported
from nimburion.core.text.redaction import redact_urls

ErrorFactory = Callable[[str, str], NimburionError]
"""Makes an error from the name of the backend and the message of its server."""


def make_error_factory(error_class: Callable[[str], NimburionError], template: str) -> ErrorFactory:
    """Return a factory of errors of this class.

    In `template`, `{where}` stands for the backend and `{message}` for the message of the server.
    """
    return lambda where, message: error_class(
        template.format(where=where, message=redact_urls(message))
    )


def make_no_roles_error(where: str, role: str) -> NotSupported:
    """Return the error of `grant` for a backend without roles."""
    return NotSupported(f"{where} has no roles; nothing can be granted to {role!r}")


def make_not_applied_error(problem: str) -> BackendUnavailable:
    """Return the error of a call that wrote nothing."""
    return BackendUnavailable(redact_urls(problem), outcome="not applied")


def make_no_reply_error(where: str, problem: str, *, sent: bool) -> BackendUnavailable:
    """Return the error of a call that got no reply.

    `sent`: at least a part of the request was sent, so it is unknown whether it was applied.
    """
    if sent:
        return BackendUnavailable(
            f"{where}: {redact_urls(problem)}; it may have been applied or not"
        )
    return make_not_applied_error(f"{where}: {problem}; nothing was written")


# --- reasons why a connection failed --------------------------------------------------------------


def explain_network_error(error: BaseException, endpoint: object) -> str | None:
    """Return why the network failed, and what to do; None for any other error."""
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, socket.gaierror):
        return f"the name of {endpoint} is not known ({error.strerror}); correct the host"
    if number == errno.ECONNREFUSED or f"Errno {errno.ECONNREFUSED}]" in text:
        return f"nothing listens at {endpoint}; start the server, or correct host and port"
    if number in {errno.EACCES, errno.EPERM}:
        return (
            f"this user may not connect to {endpoint}; see the mode of the socket, or the firewall"
        )
    if number in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return f"there is no way to {endpoint} in the network ({cast('OSError', error).strerror})"
    return None


def is_socket_missing(error: BaseException) -> bool:
    """Return whether there is no socket at the path of a server."""
    return getattr(error, "errno", None) in {errno.ENOENT, errno.ENOTSOCK}


def explain_tls_error(error: ssl.SSLError, endpoint: object, advise: Callable[[str], str]) -> str:
    """Return why TLS failed. `advise` returns the advice for a rejected certificate, by its
    reason.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return f"the certificate of {endpoint} is not accepted: {why}; {advise(why)}"
    return f"TLS with {endpoint} failed: {error.reason or error}"


def explain_silence(endpoint: object, seconds: float, advice: str) -> str:
    """Return a message that a server did not answer in time."""
    return f"no answer from {endpoint} within {seconds:g} s{advice}"
