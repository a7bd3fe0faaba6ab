"""Decisions of a backend: pure Python without I/O.

- `reserve`: which jobs an exchange leases and parks, with `admission`, `fairness` and `lanes`.
- `enqueue`: what becomes of each job of an enqueue.
- `settle`: what becomes of a job when an attempt ends.
- `rescue`: what becomes of a job whose worker was lost.

Memory and SQLite read, call these functions and write, in one atomic step. Other backends decide
some or all of it on the server. An exchange is plain if the rank of the jobs alone decides: there
are no tenants and no limits by key, and no other limits or only one lane.

| decision | memory, SQLite | PostgreSQL | Redis |
|---|---|---|---|
| enqueue, settle, rescue | Python | SQL | Lua |
| reserve, plain | Python, without a plan | SQL | Lua |
| reserve, otherwise | Python | Python | Lua |

PostgreSQL makes a plan between two statements. The second one changes nothing if something that the
plan has read has changed. SQL also leases from a lane with keys if all of its jobs have room.

These tests compare code that decides the same:

| code | compared with | test |
|---|---|---|
| enqueue, settle, rescue | these functions | `tests/backends/planning/test_backends.py` |
| Redis, reserve | `plan_reserve` | `tests/backends/redis/test_planner.py` |
| memory, plain | `plan_reserve` | `tests/backends/test_memory_reserve.py` |
| SQLite, plain | memory | `tests/backends/sqlite/test_reserve_order.py` |
| PostgreSQL, many tenants | `plan_reserve` | `tests/backends/postgres/test_first_turns.py` |
| PostgreSQL, plain | memory | `tests/model/test_backends.py` |

`tests/model` compares all calls of each backend with memory. The contract suite runs on all four.
"""
