"""docs/install.md says what the installer and the manifests are: options, containers, rights, commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from install.kubernetes import HERE
from install.node.cli import main

TOP = Path(__file__).parents[2]
INSTALL = (TOP / "docs" / "install.md").read_text()


@pytest.mark.parametrize("name", main.commands)
def test_every_command_and_each_of_its_options_is_described(name: str) -> None:
    assert f"service-tunnel-install {name}" in INSTALL
    options = [option for one in main.commands[name].params for option in one.opts if option.startswith("--")]
    assert options and not [option for option in options if f"`{option}`" not in INSTALL]


def daemonsets() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in ("service-tunnel", "bird"):
        for one in yaml.safe_load_all((HERE / f"{name}.yaml").read_text()):
            if one["kind"] == "DaemonSet":
                spec = one["spec"]["template"]["spec"]
                pairs = [
                    (one["metadata"]["name"], each) for each in [*spec.get("initContainers", ()), *spec["containers"]]
                ]
                found += pairs
    return found


def test_the_rights_of_every_container_are_those_described() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\|(?: `(\w+)`)?[^|]*\|[^|]*\| ([^|]+) \|$", INSTALL, re.MULTILINE)
    described = {(pod, container or pod): rights.replace("`", "") for pod, container, rights in rows}
    assert described == {
        (pod, container["name"]): ", ".join(
            container["securityContext"].get("capabilities", {}).get("add", ["privileged"])
        )
        for pod, container in daemonsets()
    }


def test_every_file_of_a_command_exists() -> None:
    blocks = "\n".join(re.findall(r"^ *```\n(.*?)^ *```$", INSTALL, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"(?:install|docs)/[\w./-]+", blocks + INSTALL))
    assert len(named) > 8 and not [path for path in named if not (TOP / path.rstrip(".")).exists()]


def test_every_command_of_ours_in_a_block_is_one(tmp_path: Path) -> None:
    from node_helper.cli import main as helper

    groups: dict[str, click.Group] = {"service-tunnel-install": main, "service-tunnel-helper": helper}
    calls = re.findall(r"(service-tunnel-(?:install|helper)) ([a-z-]+)((?: --[a-z-]+)*)", INSTALL)
    assert len(calls) > 8
    for program, command, flags in calls:
        options = {option for one in groups[program].commands[command].params for option in one.opts}
        assert set(flags.split()) <= options, (program, command, flags)
