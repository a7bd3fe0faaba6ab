"""The URLs of the dashboard, for staff who are signed in to the project.

```python
urlpatterns = [path("jobs/", include("nimburion.integrations.django.dashboard"))]
```

The dashboard is then at `/jobs/dashboard`. It needs the extra `server`. Permissions give rights:

| permission | right |
|---|---|
| `nimburion.view_storedjob` | `read` |
| `nimburion.view_arguments` | `payloads` |
| `nimburion.view_stacks` | `stacks` |
| `nimburion.operate_jobs` | `operate` |
| `nimburion.administer_jobs` | `admin` |

A superuser has all of them. The audit records hold the name of the user.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, URLPattern, re_path, reverse
from django.views.decorators.csrf import csrf_exempt

from nimburion.integrations import explain_missing

try:
    from nimburion.server.access import Caller
    from nimburion.server.sync_dashboard import BufferedRequest, SyncDashboard
except ModuleNotFoundError as _missing:
    raise explain_missing(_missing, "django", "server") from None

__all__ = ["app_name", "show_dashboard", "urlpatterns"]

RIGHTS_OF_PERMISSIONS = {
    "nimburion.view_storedjob": "read",
    "nimburion.view_arguments": "payloads",
    "nimburion.view_stacks": "stacks",
    "nimburion.operate_jobs": "operate",
    "nimburion.administer_jobs": "admin",
}
"""The right that each permission gives to staff."""


@csrf_exempt  # the dashboard refuses the forms of other sites itself, by `Sec-Fetch-Site`
def show_dashboard(request: HttpRequest, path: str) -> HttpResponse:
    """Answer a request for a page or an action of the dashboard.

    Who is not signed in is sent to the sign-in page of the admin, or of the project if the project
    has no admin. Who lacks a right gets status 403.
    """
    caller = _find_caller(request)
    from django.contrib.auth.views import redirect_to_login  # needs the apps

    if caller is None and request.method == "GET" and "format" not in request.GET:
        return redirect_to_login(request.get_full_path(), _find_login_url())
    host = request.get_host()  # checks ALLOWED_HOSTS
    headers = tuple(
        (name, host if name == "Host" else value) for name, value in request.headers.items()
    )
    answer = _get_dashboard().answer(
        BufferedRequest(
            method=request.method or "",
            prefix=request.path.removesuffix(path).rstrip("/"),
            path=f"/{path}",
            query=request.META.get("QUERY_STRING", ""),
            headers=headers,
            body=request.body,
            scheme=request.scheme or "http",
            caller=caller,
        )
    )
    response = HttpResponse(answer.body, status=answer.status)
    for name, value in answer.headers:
        response[name] = value
    return response


def _find_caller(request: HttpRequest) -> Caller | None:
    """Return who is signed in, with the rights that the permissions give; None: nobody."""
    user: Any = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return None
    rights = (
        right
        for permission, right in RIGHTS_OF_PERMISSIONS.items()
        if user.is_staff and user.has_perm(permission)
    )
    return Caller(str(user.get_username()), frozenset(rights))


def _find_login_url() -> str:
    try:
        return reverse("admin:login")
    except NoReverseMatch:
        return str(settings.LOGIN_URL)


def _get_dashboard() -> SyncDashboard:
    from nimburion.integrations.django.apps import NimburionConfig

    config = apps.get_app_config("nimburion")
    assert isinstance(config, NimburionConfig)
    return config.dashboard


app_name = "nimburion"
urlpatterns: list[URLPattern] = [re_path(r"^(?P<path>.*)$", show_dashboard, name="dashboard")]
