"""The manifests agree with each other, with the settings, the command line and the server.

`python3 dev.py deploy` validates them against the schemas of Kubernetes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
import pytest
import yaml

from nimburion import config
from nimburion.cli.root import root
from nimburion.core.access_rights import describe_exposure
from nimburion.server.routes import OPEN_PATHS
from tests.house.tree import ROOT
from tests.server.conftest import Api

FOLDER = ROOT / "deploy/kubernetes"
PAGE = (ROOT / "docs/how-to/run-on-kubernetes.md").read_text(encoding="utf-8")
STOP_MARGIN = 10.0
"""Seconds after the grace time in which a worker writes its outcomes and closes its session."""

Manifest = dict[str, Any]


def read_manifests() -> dict[tuple[str, str], Manifest]:
    """Return all manifests by kind and name."""
    found = [
        manifest
        for path in sorted(FOLDER.glob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    named = {(one["kind"], one.get("metadata", {}).get("name", "")): one for one in found}
    assert len(named) == len(found)
    return named


MANIFESTS = read_manifests()
WORKER = MANIFESTS["Deployment", "nimburion-worker"]
SERVER = MANIFESTS["Deployment", "nimburion-server"]
MIGRATION = next(one for (kind, _), one in MANIFESTS.items() if kind == "Job")
SCALED_OBJECT = MANIFESTS["ScaledObject", "nimburion-worker"]["spec"]
LONG_JOBS = MANIFESTS["ScaledJob", "nimburion-long"]["spec"]
PODS = {
    **{
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in (WORKER, SERVER, MIGRATION)
    },
    "nimburion-long": LONG_JOBS["jobTargetRef"]["template"]["spec"],
}
COMMANDS = ("worker", "server", "up", "worker")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """The configuration that the pods read."""
    path = tmp_path / "config.yaml"
    path.write_text(MANIFESTS["ConfigMap", "nimburion"]["data"]["config.yaml"])
    monkeypatch.setenv("NIMBURION_JOBS__URL", "memory://")
    return config.load(path)


def list_variables(pod: Manifest) -> dict[str, Manifest]:
    """Return the variables of the only container of a pod that come from Secrets."""
    (container,) = pod["containers"]
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in container["env"]
        if "valueFrom" in one
    }


def parse_arguments(arguments: list[str]) -> str:
    """Parse arguments as the command line does, and return the command; raises for wrong ones."""
    command: click.Command = root
    words = list(arguments)
    while isinstance(command, click.Group):
        name = words.pop(0)
        following = command.get_command(click.Context(command), name)
        assert following is not None, name
        command = following
    command.make_context(command.name, words)
    return str(command.name)


@pytest.mark.parametrize(("name", "command"), list(zip(PODS, COMMANDS, strict=True)))
def test_the_arguments_of_a_container_are_those_of_the_command_line(
    name: str, command: str
) -> None:
    (container,) = PODS[name]["containers"]
    assert "command" not in container  # the entry point of the image
    assert parse_arguments(container["args"]) == command
    with pytest.raises(click.UsageError):
        parse_arguments([*container["args"], "--no-such-option"])


def test_a_container_cannot_change_itself_or_become_root() -> None:
    for pod in PODS.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"memory"}


def test_the_kubelet_waits_longer_than_the_grace_time(settings: config.Config) -> None:
    for name in ("nimburion-worker", "nimburion-long"):
        least = settings.jobs.grace + STOP_MARGIN
        assert PODS[name]["terminationGracePeriodSeconds"] >= least
    for pod in PODS.values():
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        assert hook.get("seconds", 0) + STOP_MARGIN <= pod.get("terminationGracePeriodSeconds", 30)


@pytest.mark.parametrize("name", ["nimburion-worker", "nimburion-server"])
async def test_the_probes_ask_routes_that_answer(
    name: str, settings: config.Config, api: Api
) -> None:
    (container,) = PODS[name]["containers"]
    assert settings.server.port in [one["containerPort"] for one in container["ports"]]
    ports = {one["name"] for one in container["ports"]}
    probes = {
        probe: container[probe]["httpGet"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {probe["port"] for probe in probes.values()} <= ports
    paths = {kind: probe["path"] for kind, probe in probes.items()}
    assert set(paths.values()) == OPEN_PATHS
    assert paths["livenessProbe"] == "/health/live"
    assert paths["readinessProbe"] == "/health/ready"
    answers = [(await api.client.get(path)).status_code for path in paths.values()]
    assert answers == [200, 200, 200]


def test_the_pods_have_the_tokens_that_the_configuration_names(settings: config.Config) -> None:
    assert describe_exposure(settings.server) is None
    assert describe_exposure(msgspec.structs.replace(settings.server, tokens=())) is not None
    named = {token.variable for token in settings.server.tokens}
    for name in ("nimburion-worker", "nimburion-server"):
        variables = list_variables(PODS[name])
        assert variables.keys() == {*named, "NIMBURION_JOBS__URL"}
        (volume,) = [one for one in PODS[name]["volumes"] if "configMap" in one]
        assert volume["configMap"]["name"] == "nimburion"


def test_the_page_creates_each_secret_with_its_keys() -> None:
    for pod in PODS.values():
        for reference in list_variables(pod).values():
            command = PAGE.split(f"create secret generic {reference['name']} ")[1].split("\n\n")[0]
            assert f"--from-literal={reference['key']}=" in command


def test_selectors_find_their_pods_and_no_others() -> None:
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in (WORKER, SERVER)
    }
    for name, own in labels.items():
        selectors = [
            MANIFESTS["Deployment", name]["spec"]["selector"]["matchLabels"],
            MANIFESTS["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"],
        ]
        if ("Service", name) in MANIFESTS:
            selectors.append(MANIFESTS["Service", name]["spec"]["selector"])
        for selector in selectors:
            matching = [one for one in labels.values() if selector.items() <= one.items()]
            assert matching == [own]


def test_the_names_of_files_in_the_kustomization_exist() -> None:
    resources = MANIFESTS["Kustomization", ""]["resources"]
    assert [name for name in resources if not (FOLDER / name).exists()] == []


@pytest.mark.parametrize("scaled", [SCALED_OBJECT, LONG_JOBS], ids=["pods", "jobs"])
async def test_keda_reads_the_wanted_slots(
    scaled: Manifest, settings: config.Config, api: Api
) -> None:
    (trigger,) = scaled["triggers"]
    asked = trigger["metadata"]
    url = urlsplit(asked["url"])
    service = MANIFESTS["Service", "nimburion-server"]
    namespace = MANIFESTS["Kustomization", ""]["namespace"]
    assert url.hostname == f"{service['metadata']['name']}.{namespace}.svc"
    assert url.port == service["spec"]["ports"][0]["port"]
    await api.enqueue("a", "b", queue="long")
    answer = (await api.client.get(f"{url.path}?{url.query}")).json()
    assert answer[asked["valueLocation"]] == len(answer["queues"]) * (2 if url.query else 1)
    login = MANIFESTS["TriggerAuthentication", trigger["authenticationRef"]["name"]]["spec"]
    (secret,) = login["secretTargetRef"]
    variables = list_variables(PODS["nimburion-server"])
    readers = [token for token in settings.server.tokens if token.rights == ("read",)]
    references = [variables[str(token.variable)] for token in readers]
    assert {"name": secret["name"], "key": secret["key"]} in references


def test_keda_divides_by_the_slots_of_a_pod(settings: config.Config) -> None:
    def get_target(scaled: Manifest) -> float:
        return float(scaled["triggers"][0]["metadata"]["targetValue"])

    assert SCALED_OBJECT["scaleTargetRef"]["name"] == WORKER["metadata"]["name"]
    assert get_target(SCALED_OBJECT) == settings.jobs.concurrency * settings.jobs.processes
    (container,) = PODS["nimburion-long"]["containers"]
    options = container["args"]
    assert get_target(LONG_JOBS) == float(options[options.index("--concurrency") + 1])
    assert f"queues={options[options.index('--queues') + 1]}&" in str(LONG_JOBS["triggers"])


FAKE_KUBECTL = """#!/bin/sh
echo "$*" >> calls
case "$*" in *workers*) cat workers.json ;; *" pod gone "*) exit 1 ;; esac
"""


def test_the_deletion_costs_are_the_busy_slots(tmp_path: Path) -> None:
    """A pod that is gone does not keep the others from being changed."""
    (tmp_path / "kubectl").write_text(FAKE_KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    workers = [
        {"host": "busy", "expires_in": 20.0, "left": False, "vitals": {"busy": 7}},
        {"host": "gone", "expires_in": 20.0, "left": False, "vitals": {"busy": 1}},
        {"host": "idle", "expires_in": 20.0, "left": False, "vitals": None},
        {"host": "dead", "expires_in": -1.0, "left": False, "vitals": {"busy": 3}},
    ]
    (tmp_path / "workers.json").write_text(json.dumps(workers))
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, str(FOLDER / "set-deletion-costs"), "--namespace", "n"]
    result = subprocess.run(command, cwd=tmp_path, check=False, env={**os.environ, "PATH": path})
    assert result.returncode == 1
    listing, *annotations = (tmp_path / "calls").read_text().splitlines()
    words = listing.partition(" -- ")[2].split()
    assert words[0] == "nimburion"
    assert parse_arguments(words[1:]) == "list"
    start = "--namespace n annotate --overwrite pod"
    cost = "controller.kubernetes.io/pod-deletion-cost"
    assert annotations == [
        f"{start} busy {cost}=7",
        f"{start} gone {cost}=1",
        f"{start} idle {cost}=0",
    ]
