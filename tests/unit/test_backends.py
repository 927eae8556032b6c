"""Where a helper has its objects from, and who is told what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_helper import api_writer
from node_helper.backends import backend
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.settings import INGRESS, NODE, Settings
from tests.fake_api import FakeApi
from tests.unit import test_api_writer as writing


def test_events_are_told_by_ingress_helpers_alone_and_about_services_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of nodes see the same; and the node role's account may not even create Events."""
    monkeypatch.setattr(api_writer, "JITTER", 0.0)
    with FakeApi() as server:
        server.put(writing.service())
        kubeconfig = server.kubeconfig(tmp_path)
        made = {
            role: backend(Settings("n1", kubeconfig=kubeconfig, roles=frozenset({role}), state_dir=tmp_path / role))
            for role in (NODE, INGRESS)
        }
        try:
            for role, one in made.items():
                writing.wait(lambda one=one: writing.WEB in (one.read() or Snapshot()).services, "the Service")  # type: ignore[misc]
                problems = [
                    Problem("Node", ObjectKey("", "n1"), "UnknownNode", f"seen in role {role}"),
                    Problem("Service", writing.WEB, "InvalidVIP", f"seen in role {role}"),
                ]
                snapshot = one.read()
                assert snapshot is not None
                one.tell(problems, snapshot)
            writing.wait(lambda: server.count("POST") >= 1, "an Event")
            server.end_watches()
        finally:
            server.end_watches()
            for one in made.values():
                one.close()
        assert [event["message"] for event in server.events] == [f"seen in role {INGRESS}"]
