"""The rights that install/kubernetes/base/rbac.yaml gives: enough, each needed, and none to change anything else."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from cni_plugin.netns import entered
from conformance.api.cluster_api import PROJECT
from conformance.api.control_plane import ControlPlane
from conformance.api.test_source import WEB, Followed, endpoint_slice, service
from node_helper.api import Api, ApiError
from node_helper.api_writer import EventTeller, event
from node_helper.model import Problem, Service
from node_helper.services import TUNNEL_BUCKETS
from node_helper.settings import INGRESS, NODE

WATCHES_OPEN = 0.5
"""Seconds in which a watch that is refused says so."""
RBAC = PROJECT / "install" / "kubernetes" / "base" / "rbac.yaml"
ROLES: dict[str, dict[str, Any]] = {
    found["metadata"]["name"]: found for found in yaml.safe_load_all(RBAC.read_text()) if found["kind"] == "ClusterRole"
}
RULES = [
    pytest.param(name, position, resource, verb, id=f"{name}-{resource.replace('/', '-')}-{verb}")
    for name, role in ROLES.items()
    for position, rule in enumerate(role["rules"])
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


@contextmanager
def without(control: ControlPlane, name: str, position: int, resource: str, verb: str) -> Iterator[None]:
    """The cluster with one verb of one resource taken away, and nothing else."""
    less = copy.deepcopy(ROLES[name])
    rule = less["rules"].pop(position)
    others = {**rule, "resources": [other for other in rule["resources"] if other != resource]}
    rest = {**rule, "resources": [resource], "verbs": [other for other in rule["verbs"] if other != verb]}
    less["rules"] += [part for part in (others, rest) if part["resources"] and part["verbs"]]
    control.apply(less)
    try:
        yield
    finally:
        control.apply(ROLES[name])


def works(control: ControlPlane, account: str) -> str:
    """Everything that a role does at the API server; returns what it could not do."""
    followed = Followed(control, account, {"node": [NODE], "ingress": [INGRESS]}[account])
    try:
        deadline = time.monotonic() + 20
        while (found := followed.source.read()) is None or found.problems:
            if followed.source.trouble():
                return followed.source.trouble()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        deadline = time.monotonic() + WATCHES_OPEN
        while time.monotonic() < deadline:
            if followed.source.trouble():
                return followed.source.trouble()
            time.sleep(0.02)
        if account == "node":
            return ""
        version = followed.source.version_of(WEB)
        assert version is not None
        try:
            with entered(control.host.netns()):
                api = Api.connect(control.kubeconfig(account))
                api.annotate_service(WEB, version, {TUNNEL_BUCKETS: "1"})
                api.create_event("default", an_event(found.services[WEB]))
        except ApiError as error:
            return str(error)
        return ""
    finally:
        followed.source.close()


def an_event(about: Service) -> dict[str, Any]:
    from datetime import UTC, datetime

    return event(Problem("Service", about.key, "InvalidVIP", str(time.time())), about, "n1", datetime.now(UTC))


@pytest.mark.parametrize("account", ["node", "ingress"])
def test_the_rights_are_enough(control: ControlPlane, account: str) -> None:
    control.apply(service(), endpoint_slice("web-1", "10.244.0.5"))
    assert works(control, account) == ""


@pytest.mark.parametrize(("name", "position", "resource", "verb"), RULES)
def test_no_right_can_be_taken_away(control: ControlPlane, name: str, position: int, resource: str, verb: str) -> None:
    control.apply(service(), endpoint_slice("web-1", "10.244.0.5"))
    with without(control, name, position, resource, verb):
        deadline = time.monotonic() + 30  # the API server learns of its own rules by a watch
        while "forbidden" not in (found := works(control, name.removeprefix("service-tunnel-"))):
            assert time.monotonic() < deadline
        assert resource.partition("/")[0] in found


FORBIDDEN_PATCHES: dict[str, dict[str, Any]] = {
    "another annotation of ours": {"metadata": {"annotations": {"cmd.nu/tunnel": "198.51.100.9"}}},
    "another annotation": {"metadata": {"annotations": {"note": "x"}}},
    "a label": {"metadata": {"labels": {"x": "y"}}},
    "an annotation taken away": {"metadata": {"annotations": {"theirs": None}}},
    "a finalizer": {"metadata": {"finalizers": ["example.com/x"]}},
    "an owner, with whom it would be deleted": {
        "metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]}
    },
    "a condition": {
        "status": {
            "conditions": [
                {
                    "type": "Mine",
                    "status": "True",
                    "reason": "None",
                    "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ]
        }
    },
    "the load balancer's address": {"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}},
}


@pytest.mark.parametrize("patch", FORBIDDEN_PATCHES.values(), ids=FORBIDDEN_PATCHES.keys())
def test_the_ingress_role_may_write_its_tables_and_nothing_else(control: ControlPlane, patch: dict[str, Any]) -> None:
    annotated = service(theirs="1", **{"cmd.nu/tunnel": "198.51.100.1"})
    annotated["spec"]["type"] = "LoadBalancer"  # others have no such status
    control.apply(annotated)
    before = control.get("service", "web")
    refused = control.patch_service_status("web", patch, account="ingress")
    assert "ValidatingAdmissionPolicy" in refused
    assert control.get("service", "web") == before
    assert not control.patch_service_status(
        "web", {"metadata": {"annotations": {TUNNEL_BUCKETS: "1"}}}, account="ingress"
    )
    assert control.get("service", "web")["metadata"]["annotations"][TUNNEL_BUCKETS] == "1"


def test_through_the_status_the_spec_stays(control: ControlPlane) -> None:
    """The API server itself pins it: such a patch is taken and changes nothing."""
    control.apply(service())
    spec = control.get("service", "web")["spec"]
    control.patch_service_status("web", {"spec": {"selector": {"app": "mine"}}}, account="ingress")
    assert control.get("service", "web")["spec"] == spec


def test_the_other_account_writes_nothing(control: ControlPlane) -> None:
    control.apply(service())
    refused = control.patch_service_status("web", {"metadata": {"annotations": {TUNNEL_BUCKETS: "1"}}}, account="node")
    assert "forbidden" in refused


def test_a_problem_is_one_event_however_many_helpers_tell(control: ControlPlane) -> None:
    control.apply(service())
    followed = Followed(control, "ingress", [INGRESS])
    try:
        about = followed.wait(lambda snapshot: WEB in snapshot.services).services[WEB]
    finally:
        followed.source.close()
    problem = Problem("Service", WEB, "InvalidVIP", "Service default/web: 'x' is no IP address")
    for node in ("n1", "n2", "n3"):
        with entered(control.host.netns()):
            teller = EventTeller(Api.connect(control.kubeconfig("ingress")), node)
        teller.tell(problem, about)
        deadline = time.monotonic() + 10
        while not control.events("web"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        teller.close()
    (told,) = control.events("web")
    assert (told["reason"], told["message"], told["type"]) == ("InvalidVIP", problem.message, "Warning")
    assert told["involvedObject"]["uid"] == about.uid
