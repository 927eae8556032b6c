"""Adopting pods from libcni's cache: what becomes a record, and what must not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import attachment, netns
from node_helper.adopt import adopt

WHOLE: dict[str, Any] = {
    "kind": "cniCacheV1",
    "containerId": "c1",
    "networkName": "pods",
    "ifName": "eth0",
    "netns": "/proc/self/ns/net",
    "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-1"]],
    "result": {"ips": [{"address": "10.0.0.2/24"}]},
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own network namespace stands in for a pod's, which only root could make."""
    monkeypatch.setattr(netns, "OWN", "/proc/self/ns/uts")


def adopted(tmp_path: Path, entry: object) -> str:
    """What becomes of one cache entry."""
    results = tmp_path / "results"
    results.mkdir()
    (results / "pods-c1-eth0").write_text(json.dumps(entry))
    (outcome,) = adopt(results, tmp_path / "run", folders=[])
    assert (outcome.record is not None) == (outcome.text == "adopted")
    return outcome.text


def test_a_pod_of_the_cache_gets_its_record(tmp_path: Path) -> None:
    assert adopted(tmp_path, WHOLE) == "adopted"
    (record,) = attachment.read_all(str(tmp_path / "run"))[0]
    assert (record.namespace, record.name, record.ips) == ("shop", "web-1", ("10.0.0.2",))
    assert record.inode == os.stat("/proc/self/ns/net").st_ino


@pytest.mark.parametrize("key", ["networkName", "containerId", "ifName"])
@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "..", "a:b", "a/b", ""])
def test_names_that_could_lead_elsewhere_become_no_record(tmp_path: Path, key: str, name: str) -> None:
    assert "not adopted: its names" in adopted(tmp_path, WHOLE | {key: name})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "results" / "pods-c1-eth0"]


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/proc/self/ns/mnt", "/dev/null", "/never/was", "", None])
def test_what_is_no_pods_namespace_becomes_no_record(tmp_path: Path, path: str | None) -> None:
    assert "not adopted" in adopted(tmp_path, WHOLE | {"netns": path})


@pytest.mark.parametrize(
    "entry",
    [[], None, {}, {"kind": "other"}, WHOLE | {"cniArgs": 7}, WHOLE | {"result": []}, WHOLE | {"cniArgs": []},
     WHOLE | {"result": {"ips": [{"address": "x"}]}}, WHOLE | {"result": {"ips": 3}},
     WHOLE | {"result": {"interfaces": [3]}}, WHOLE | {"result": {"interfaces": 3}}],
)  # fmt: skip
def test_an_entry_of_another_form_is_passed_over_and_told(tmp_path: Path, entry: object) -> None:
    assert "not adopted" in adopted(tmp_path, entry)
