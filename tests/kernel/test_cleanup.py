"""What `service-tunnel-helper cleanup` does where a part of it cannot be done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.cluster import NodeSpec
from tests.testbed.namespaces import CommandFailed
from tests.testbed.scene import VIPS, Scene

REFUSAL = "Another app is currently holding the xtables lock"


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene([NodeSpec("ingress1", ingress=True)]) as scene:
        scene.apply_service()
        scene.add_pods([("ingress1", "pod1")], {"app": "web"})
        scene.sync()
        scene.settle()
        scene.helpers["ingress1"].stop()
        yield scene


def stub(folder: Path, name: str) -> dict[str, str]:
    """An environment in which the program `name` fails."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{REFUSAL}' >&2\nexit 4\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("program", "step", "left"),
    [
        ("iptables-save", "the host's iptables chains", "iptables"),
        ("ip6tables-restore", "the host's ip6tables chains", "ip6tables"),
    ],
)
def test_chains_that_cannot_be_removed_are_named_and_everything_else_goes(
    scene: Scene, tmp_path: Path, program: str, step: str, left: str
) -> None:
    host = scene.cluster.nodes["ingress1"].host
    (pod,) = scene.cluster.pods
    with pytest.raises(CommandFailed) as raised:
        scene.helper_command("ingress1", "cleanup", env=stub(tmp_path / "bin", program))
    assert f"{step}: " in raised.value.stderr and REFUSAL in raised.value.stderr
    for tool in ("iptables", "ip6tables"):
        assert ("SERVICE-TUNNEL" in host.run(f"{tool}-save").stdout) == (tool == left)
    assert not host.path("/run/netns/service-tunnel").exists()
    assert "svctun" not in host.run("ip", "link").stdout
    for version in ("-4", "-6"):
        assert not host.run("ip", version, "route", "show", "proto", "116").stdout
    assert not [vip for vip in VIPS.values() if vip in pod.place.run("ip", "addr").stdout]
    # With the obstacle gone the rest goes, too.
    scene.helper_command("ingress1", "cleanup")
    for tool in ("iptables", "ip6tables"):
        assert "SERVICE-TUNNEL" not in host.run(f"{tool}-save").stdout
    assert not host.run("ipset", "list", "-name").stdout


def test_a_missing_program_is_named_and_everything_else_goes(scene: Scene, tmp_path: Path) -> None:
    """The whole PATH is a folder without iptables."""
    host = scene.cluster.nodes["ingress1"].host
    for name in ("ip", "nsenter"):  # the second is the testbed's
        (tmp_path / name).symlink_to(shutil.which(name) or f"no {name}")
    with pytest.raises(CommandFailed) as raised:
        scene.helper_command("ingress1", "cleanup", env={"PATH": str(tmp_path)})
    assert "iptables-save is not installed" in raised.value.stderr
    assert "ip6tables-save is not installed" in raised.value.stderr
    assert not host.path("/run/netns/service-tunnel").exists()
