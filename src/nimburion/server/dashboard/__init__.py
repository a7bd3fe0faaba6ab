"""The dashboard: pages below `/dashboard` that show what happens and let operators change it.

How to add a page:

1. Write `pages/NAME.py`, or in the folder of its subject: a frozen struct `...Data` with what the
   page shows, and `async def read_NAME(request: PageRequest[...]) -> ...Data`. Read the backend
   only through `request.readings`, so that all viewers share the reads.
2. Declare `NAME = DashboardPage(path=..., title=..., read=..., template="NAME.html", ...)`. The
   JSON twin, the live updates and the checks of rights follow from it. `tables` names what the page
   has as CSV.
3. Write `templates/NAME.html`, in a folder of the same name: extend `layout.html`. The block `live`
   is replaced by live updates; the block `static` above it is not, so filters and inputs belong
   there.
4. A button is a `DashboardAction` around an operation of the API. Draw it with the macro
   `action_form` of `macros.html`, which shows it only to callers with its right.
5. Add page and actions to `site.py`; `section` names the entry of the navigation.
6. No inline style, no inline script: the content security policy refuses them. Charts are SVG from
   `charts.py`; times, ages and states have filters in `rendering.py`.
7. Add the page to `tests/server/dashboard/conftest.py`: the general tests then call it with every
   right, from other sites and with hostile data.
"""
