"""Our plugin under a runtime that links libcni, as CRI-O does: GC with a list, STATUS polled, CHECK after ADD, cache.

`sequence` (conformance/peers/cni/sequence) makes the calls in one process; `cnitool` names no valid attachments, knows
one container, and finds the configuration of a DEL on the disk.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.chains import NETWORK, POD, RUN_DIR, Libcni
from conformance.contract.world import changes
from conformance.test_chains import ANNOTATIONS, MAPPINGS, POD_ARGUMENTS, STANDALONE, VIPS, listed
from tests.fake_helper import FakeHelper, tunnels
from tests.testbed.host import Host

READY = 60.0
"""Seconds for which STATUS is asked again; it ends with the first that is well."""


@pytest.fixture
def libcni(peer_folder: Path) -> Iterator[Libcni]:
    with Host("node") as host:
        yield Libcni(host, peer_folder)


def step(verb: str, container: str = "", netns: str = POD, **more: Any) -> dict[str, Any]:
    attachment = {"container": container, "netns": netns, "interface": "eth0"} if container else {}
    return {"verb": verb, **attachment, **more}


def errors(outcomes: list[dict[str, Any]]) -> list[str]:
    return [outcome["error"] for outcome in outcomes]


def records(libcni: Libcni) -> set[str]:
    return {path.name for path in libcni.host.path(f"{RUN_DIR}/attachments").iterdir()}


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize("main", ["ptp", "bridge"])
def test_gc_keeps_what_the_runtime_lists_and_takes_what_is_stale(libcni: Libcni, main: str, version: str) -> None:
    other = libcni.add_pod("other")
    libcni.configure(listed(main, "last", version, STANDALONE))
    untouched = libcni.view(other)
    assert errors(libcni.sequence(step("add", "kept"))) == [""]
    alone, before = libcni.view(), libcni.view(other)
    assert changes(untouched, before) != ""
    assert errors(libcni.sequence(step("add", "stale", other))) == [""]
    assert records(libcni) == {f"{NETWORK}:kept:eth0", f"{NETWORK}:stale:eth0"}

    valid = [{"containerID": "kept", "ifname": "eth0"}]
    assert errors(libcni.sequence(step("gc", valid=valid), step("check", "kept"))) == ["", ""]
    assert records(libcni) == {f"{NETWORK}:kept:eth0"}
    assert changes(alone, libcni.view()) == "", "the pod that is listed is as it was"
    assert changes(before, libcni.view(other)) == "", "the one that is not has nothing left"
    collected = [call for call in libcni.seen() if call.verb == "GC"]
    if version == "1.1.0":
        (call,) = collected
        assert call.config["cni.dev/valid-attachments"] == valid
    else:
        assert collected == [], "that version has no GC; libcni deletes what is stale by itself"
    assert errors(libcni.sequence(step("del", "kept"), step("gc", valid=[]))) == ["", ""]
    assert records(libcni) == set()


def test_a_stale_attachment_that_libcni_does_not_remember_goes_as_well(libcni: Libcni) -> None:
    """After the loss of libcni's cache only the plugin knows of it."""
    libcni.configure(listed("ptp", "last", "1.1.0", STANDALONE))
    other = libcni.add_pod("other")
    assert errors(libcni.sequence(step("add", "kept"), step("add", "stale", other))) == ["", ""]
    for file in libcni.host.path("/var/lib/cni/results").iterdir():
        if "stale" in file.name:
            file.unlink()
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    assert errors(libcni.sequence(step("gc", valid=valid), step("check", "kept"))) == ["", ""]
    assert records(libcni) == {f"{NETWORK}:kept:eth0"}
    assert VIPS[4] not in libcni.host.run("ip", "-n", "other", "addr").stdout
    assert VIPS[4] in libcni.pod("ip", "addr")


def test_the_calls_of_cri_o_in_its_order(libcni: Libcni) -> None:
    """STATUS until the node is ready, GC at the start, CHECK right after ADD, DEL by what ADD was called with."""
    chain = listed("ptp", "last", "1.1.0", {"whenHelperIsAway": "retry", "capabilities": {ANNOTATIONS: True}})
    libcni.configure(chain)
    obstacle = libcni.host.path(RUN_DIR)
    obstacle.write_text("no folder")  # the node is not ready yet

    def make_ready() -> None:
        while not any(file.read_text().strip() == "1" for file in libcni.host.path("/run/calls").glob("*/status")):
            if ended.wait(0.01):
                return
        obstacle.unlink()
        obstacle.mkdir()

    ended = threading.Event()
    thread = threading.Thread(target=make_ready)
    thread.start()
    try:
        status, gc = libcni.sequence(step("status", patience=READY), step("gc", valid=[]))
    finally:
        ended.set()
        thread.join()
    assert (status["error"], gc["error"]) == ("", "")
    assert status["tries"] > 1
    failed = next(call for call in libcni.seen() if call.status)
    assert (failed.verb, json.loads(failed.stdout)["code"]) == ("STATUS", 50)

    before = libcni.view()
    arguments = list(POD_ARGUMENTS.items())
    capabilities = {**MAPPINGS, ANNOTATIONS: {"cmd.nu/tunnel": "203.0.113.99", "other": "kept"}}
    sandbox = step("add", "sandbox", arguments=arguments, capabilities=capabilities)
    with FakeHelper(libcni.host.path(f"{RUN_DIR}/helper.sock"), tunnels(*VIPS.values())) as helper:
        outcomes = libcni.sequence(sandbox, {**sandbox, "verb": "check"}, step("status"))
    assert errors(outcomes) == ["", "", ""]
    (question,) = helper.questions
    assert (question["namespace"], question["name"], question["uid"]) == ("shop", "web-1", "u-1")
    inside = libcni.pod("ip", "addr")
    assert VIPS[4] in inside and VIPS[6] in inside and "203.0.113.99" not in inside
    check = next(call for call in libcni.seen() if call.verb == "CHECK")
    assert check.config["runtimeConfig"][ANNOTATIONS] == capabilities[ANNOTATIONS]

    # The network is another one by now, and the helper away: neither matters to a pod that ends.
    libcni.configure({**chain, "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.77.0.0/24"}}]})
    calls = len(libcni.seen())
    ends = step("del", "sandbox", cached=True)
    assert errors(libcni.sequence(ends)) == [""]
    (deleted,) = libcni.seen()[calls:]
    assert (deleted.verb, deleted.status) == ("DEL", 0)
    assert deleted.config["runtimeConfig"] == check.config["runtimeConfig"]
    assert deleted.config["prevResult"] == check.config["prevResult"]
    assert changes(before, libcni.view()) == ""
    # The cache went with it; CRI-O then deletes by what is on the disk, where ours is no longer listed.
    (again,) = errors(libcni.sequence(ends))
    assert "never added" in again
