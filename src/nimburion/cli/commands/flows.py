"""`nimburion flows …`: list, show, close, cancel, replay and export flows; runs by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.background import format_preview
from nimburion.cli.exit_codes import BadInput
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import format_time, print_fields, print_result, print_table
from nimburion.cli.parameters import add_reason_option
from nimburion.core.errors import JobNotFound
from nimburion.core.flows import FlowState
from nimburion.core.job import State
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.actions.flow_export import ExportedJob
    from nimburion.actions.flows import FlowTree, FoundFlows, ReplayPreview
    from nimburion.actions.open_runs import OpenRunList
    from nimburion.core.backend import Backend
    from nimburion.core.flows import FlowInfo

_MAX_EXPORTED_RUNS = 200


@listing_group
def flows() -> None:
    """List, show, close, cancel, replay and export flows (jobs that wait for each other)."""


@flows.command("list")
@click.option("--running", is_flag=True, help="Only flows that have not ended.")
@click.option(
    "--state", type=click.Choice([one.value for one in FlowState]), help="Only flows in this state."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--after", metavar="CURSOR", help="Continue after the previous page.")
@add_shared_options
def list_flows(
    running: bool,  # noqa: FBT001 (the flag itself)
    state: str | None,
    limit: int,
    after: str | None,
) -> None:
    """List flows, newest first.

    One call examines at most 1,000 flows. If it stops there, it says how to continue.
    """
    from nimburion.actions.flows import search_flows  # for this command only

    if running and state not in {None, FlowState.RUNNING}:
        raise BadInput(f"a flow that is {state} has ended; give either --running or --state")
    wanted = FlowState.RUNNING if running else None if state is None else FlowState(state)
    found = current_invocation().run(
        lambda backend: search_flows(backend.reads, state=wanted, limit=limit, after=after)
    )
    data = {
        "flows": [flow_to_data(flow) for flow in found.flows],
        "next": found.next,
        "examined": found.examined,
    }
    print_result(data, lambda: print_flows(found))


def flow_to_data(flow: FlowInfo) -> dict[str, object]:
    """Return a flow as JSON data, with its state."""
    return {**msgspec.to_builtins(flow), "state": flow.state.value}


def print_flows(found: FoundFlows) -> None:
    """Print one line per flow and the option that shows the next page."""
    print_table(
        ("id", "name", "state", "members", "unfinished", "completed", "failed", "cancelled",
         "created", "ended"),
        [
            (
                *(flow.id, flow.name, *_list_counts(flow)),
                *(format_time(flow.created_at), format_time(flow.finished_at)),
            )
            for flow in found.flows
        ],
        "no such flows",
    )  # fmt: skip
    if found.next is not None:
        count = format_count(found.examined, "flow")
        click.echo(f"examined {count}; more: add --after {escape_controls(found.next)}")


def _format_state(flow: FlowInfo) -> str:
    return f"{flow.state.value}, open" if flow.is_open else flow.state.value


def _list_counts(flow: FlowInfo) -> tuple[object, ...]:
    return (
        _format_state(flow),
        flow.members,
        flow.unfinished,
        flow.completed,
        flow.failed,
        flow.cancelled,
    )


@flows.command("show")
@click.argument("flow_id", metavar="ID")
@add_shared_options
def show_flow(flow_id: str) -> None:
    """Show a flow and its groups: state and counts.

    A group counts as one member of its flow. `jobs list --flow ID` lists the jobs.
    """
    tree = current_invocation().run(lambda backend: make_actions(backend).flows.get(flow_id))
    print_result(tree_to_data(tree), lambda: print_flow(tree))


def tree_to_data(tree: FlowTree) -> dict[str, object]:
    """Return a flow with its groups as JSON data."""
    return {**flow_to_data(tree), "groups": [tree_to_data(group) for group in tree.groups]}


def print_flow(tree: FlowTree) -> None:
    """Print the fields of a flow, then one line for each group."""
    print_fields(
        {
            "id": tree.id,
            "name": tree.name,
            "state": _format_state(tree),
            "members": tree.members,
            "unfinished": tree.unfinished,
            "completed": tree.completed,
            "failed": tree.failed,
            "cancelled": tree.cancelled,
            "tolerated": tree.max_failed or None,
            "created": format_time(tree.created_at),
            "ended": format_time(tree.finished_at),
        }
    )
    from nimburion.actions.flow_members import iterate_groups  # for this command only

    groups = list(iterate_groups(tree))
    if groups:
        click.echo("\ngroups:")
        print_table(
            ("id", "state", "members", "unfinished", "completed", "failed", "cancelled"),
            [(group.id, *_list_counts(group)) for group in groups],
            "",
        )


@flows.command("versions")
@add_shared_options
def list_versions() -> None:
    """List the names of durable functions with open runs, and whether a worker serves them.

    A run is open while it is suspended, or waits and has started. Keep the code of a name deployed
    until it is no longer listed. At most 10,000 suspended and 10,000 waiting jobs are examined.
    """
    from nimburion.actions.open_runs import list_open_runs  # for this command only

    found = current_invocation().run(list_open_runs)
    data = {"names": msgspec.to_builtins(found.names), "complete": found.is_complete}
    print_result(data, lambda: print_versions(found))


def print_versions(found: OpenRunList) -> None:
    """Print one line per name."""
    print_table(
        ("name", "suspended", "waiting", "oldest", "oldest run", "workers", "note"),
        [
            (
                *(one.name, one.suspended, one.waiting, format_time(one.oldest), one.oldest_id),
                *(one.workers, "" if one.workers else "no worker serves it"),
            )
            for one in found.names
        ],
        "no open runs",
    )
    if not found.is_complete:
        from nimburion.actions.open_runs import MAX_READ  # for this command only

        click.echo(f"examined {MAX_READ:,} suspended or waiting jobs, and there are more")


@flows.command("close")
@click.argument("flow_id", metavar="ID")
@add_shared_options
def close_flow(flow_id: str) -> None:
    """Close an open flow, which then ends with its last member."""
    was_open = current_invocation().run(lambda backend: _close(backend, flow_id))
    message = "closed" if was_open else "was not open"
    print_result({"closed": flow_id}, lambda: click.echo(f"{escape_controls(flow_id)} {message}"))


async def _close(backend: Backend, flow_id: str) -> bool:
    """Close a flow, and return whether it was open."""
    actions = make_actions(backend).flows
    was_open = (await actions.get(flow_id)).is_open
    await actions.close(flow_id)
    return was_open


@flows.command("export")
@click.argument("flow_id", metavar="ID")
@add_shared_options
def export_flow(flow_id: str) -> None:
    """Print a flow with its jobs as JSON, for support.

    It has states, errors, dependencies, the steps of durable runs and audit records, but no
    arguments, results, values or tracebacks.
    """
    data = current_invocation().run(lambda backend: _export(backend, flow_id))
    click.echo(msgspec.json.format(msgspec.json.encode(data)).decode())


async def _export(backend: Backend, flow_id: str) -> dict[str, object]:
    from nimburion.actions.flow_export import read_export  # for this command only

    export = await read_export(backend, await make_actions(backend).flows.get(flow_id))
    runs = await _export_runs(backend, export.jobs)
    return {**msgspec.to_builtins(export), "runs": runs}


async def _export_runs(backend: Backend, jobs: Iterable[ExportedJob]) -> list[dict[str, object]]:
    """Return the durable runs among the jobs that began, without values. At most
    `_MAX_EXPORTED_RUNS` jobs are asked.
    """
    from nimburion.cli.run_output import timeline_to_data  # for this command only
    from nimburion.jobs.durable.timeline import read_run_timeline

    began = [one for one in jobs if one.attempts or _may_be_run(one)]
    runs = []
    for one in began[:_MAX_EXPORTED_RUNS]:
        try:
            found = await read_run_timeline(backend, one.id)
        except JobNotFound:
            continue
        if found.steps or found.entries:
            runs.append(timeline_to_data(found, with_values=False))
    return runs


def _may_be_run(job: ExportedJob) -> bool:
    """Return whether a job that has no attempt may have begun: a wait ends no attempt."""
    return job.state is State.SUSPENDED or (not job.state.finished and not job.conditions)


@flows.command("cancel")
@click.argument("flow_id", metavar="ID")
@add_reason_option
@click.option("--yes", is_flag=True, help="Do it; without, only count.")
@add_shared_options
def cancel_flow(flow_id: str, reason: str, yes: bool) -> None:  # noqa: FBT001 (the flag itself)
    """Cancel all members of a flow that have not ended. An open flow is closed first.

    Without --yes, it only counts them.
    """
    changed = current_invocation().run(lambda backend: _cancel(backend, flow_id, reason, yes=yes))
    print_result(
        {"cancelled": changed}, lambda: click.echo(f"{format_count(len(changed))} cancelled")
    )


async def _cancel(backend: Backend, flow_id: str, reason: str, *, yes: bool) -> list[str]:
    actions = make_actions(backend).flows
    if not yes:
        from nimburion.actions.flows import check_is_whole  # for this command only

        flow = await actions.get(flow_id)
        check_is_whole(flow)
        if not flow.unfinished:
            raise BadInput(f"flow {flow.id} has ended; there is nothing to cancel")
        members = format_count(flow.unfinished - flow.is_open, "member")
        raise BadInput(
            f"{members} of flow {flow.id} would be cancelled; nothing was done. Add --yes to "
            "confirm"
        )
    return await actions.cancel(flow_id, reason=reason)


@flows.command("replay")
@click.argument("flow_id", metavar="ID")
@add_reason_option
@click.option("--yes", is_flag=True, help="Do it; without, only show what would run.")
@add_shared_options
def replay_flow(flow_id: str, reason: str, yes: bool) -> None:  # noqa: FBT001 (the flag itself)
    """Run the failed part of a flow again. Without --yes, it only shows what would run.

    Members that failed run again, and those that were cancelled because of them wait again.
    Members that completed stay as they are.
    """
    changed = current_invocation().run(lambda backend: _replay(backend, flow_id, reason, yes=yes))
    print_result(
        {"replayed": changed}, lambda: click.echo(f"{format_count(len(changed))} replayed")
    )


async def _replay(backend: Backend, flow_id: str, reason: str, *, yes: bool) -> list[str]:
    actions = make_actions(backend).flows
    if not yes:
        preview = await actions.preview_replay(flow_id)
        if preview.failed.complete and not preview.failed.count:
            raise BadInput(f"no member of flow {flow_id} failed; there is nothing to replay")
        if not current_invocation().as_json:
            _print_preview(preview)
        raise BadInput(
            f"{format_preview(preview.failed)} of flow {flow_id} would be replayed; nothing was "
            "done. Add --yes to confirm"
        )
    return await actions.replay(flow_id, reason=reason)


def _print_preview(preview: ReplayPreview) -> None:
    """Print the first members that would run, and how many would wait again."""
    from nimburion.cli.records import print_records  # for a preview only

    print_records(preview.failed.first, "no member failed")
    if preview.cancelled.count:
        click.echo(
            f"{format_preview(preview.cancelled)} cancelled because others did not complete: each "
            "waits again if those run again"
        )
