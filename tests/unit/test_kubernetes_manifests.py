"""What the manifests promise: one file from several, named rights with reasons, the folders that are needed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from cni_plugin import __version__
from install.image import PLUGIN_IN_IMAGE
from install.kubernetes import HERE, WRITTEN
from install.node.cli import main as installer
from node_helper.cli import main as helper

COMMANDS = {"service-tunnel-helper": helper, "service-tunnel-install": installer}
FILES = ("service-tunnel", "bird", "uninstall")


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((HERE / f"{name}.yaml").read_text()))


def pods() -> dict[str, dict[str, Any]]:
    """The pods' specs, by the DaemonSet's name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for name in FILES
        for one in objects(name)
        if one["kind"] == "DaemonSet"
    }


def containers() -> list[Any]:
    found = [
        pytest.param(spec, container, id=f"{name}-{container['name']}")
        for name, spec in pods().items()
        for container in (*spec.get("initContainers", ()), *spec["containers"])
    ]
    assert len(found) >= 9
    return found


@pytest.mark.parametrize("name", WRITTEN)
def test_the_file_for_users_is_made_of_those_here(name: str) -> None:
    assert (HERE / name).read_text() == WRITTEN[name](), "run `python -m install.kubernetes`"


def test_birds_configuration_is_the_examples() -> None:
    (found,) = (one for one in objects("bird") if one["kind"] == "ConfigMap")
    assert found["data"] == {path.name: path.read_text() for path in (HERE.parent / "bird").glob("*.conf")}


@pytest.mark.parametrize(("name", "spec"), pods().items(), ids=pods())
def test_a_pod_has_what_a_nodes_program_needs_and_no_more(name: str, spec: dict[str, Any]) -> None:
    assert "hostPID" not in spec and "hostIPC" not in spec and spec["enableServiceLinks"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}] and spec["hostNetwork"] is True
    assert (spec.get("serviceAccountName") == name) != (spec.get("automountServiceAccountToken") is False)


@pytest.mark.parametrize(("spec", "container"), containers())
def test_a_container_names_its_rights_and_can_write_only_what_it_is_given(
    spec: dict[str, Any], container: dict[str, Any]
) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    if context.get("privileged"):
        assert container["name"] == "namespace" or "uninstall" in str(spec) or "cleanup" in str(spec)
    else:
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"]["drop"] == ["ALL"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def test_each_capability_says_what_it_is_for() -> None:
    for name in ("base/node", "base/ingress", "bird"):
        lines = (HERE / f"{name}.yaml").read_text().splitlines()
        added = [line for line in lines if re.match(r"\s+- [A-Z]+(_[A-Z]+)*( |$)", line)]
        assert added and all(" # " in line for line in added), name


@pytest.mark.parametrize(("spec", "container"), containers())
def test_each_command_flag_and_variable_is_one_of_the_program(spec: dict[str, Any], container: dict[str, Any]) -> None:
    command = container["command"]
    assert command[0] in {*COMMANDS, "sh", "sleep"}
    if command[0] in COMMANDS:
        image = container["image"]
        assert image == f"service-tunnel:{__version__}"
        found = COMMANDS[command[0]].commands[command[1]]
        flags = {option for one in found.params for option in one.opts}
        given = {word.partition("=")[0] for word in command[2:]}
        assert given <= flags
        named = {f"SVC_TUNNEL_{one.name}".upper() for one in found.params} | {"SVC_TUNNEL_SOCKET"}
        assert {one["name"] for one in container.get("env", ())} <= named


def test_each_setting_is_a_flag_of_the_helper() -> None:
    (found,) = (one["data"] for one in objects("service-tunnel") if one["kind"] == "ConfigMap")
    assert found.keys() <= {f"SVC_TUNNEL_{one.name}".upper() for one in helper.commands["run"].params}


def test_the_installer_takes_the_plugin_from_where_the_image_has_it() -> None:
    (one,) = (container for container in pods()["node"]["containers"] if container["name"] == "installer")
    assert {"name": "SVC_TUNNEL_SOURCE", "value": f"/{PLUGIN_IN_IMAGE}"} in one["env"]


def test_the_roles_share_no_folder_and_no_port() -> None:
    helpers = [
        next(one for one in pods()[name]["containers"] if one["name"] == "helper") for name in ("node", "ingress")
    ]
    for key in ("SVC_TUNNEL_METRICS", "SVC_TUNNEL_ROLES"):
        values = [next(env["value"] for env in one["env"] if env["name"] == key) for one in helpers]
        assert values[0] != values[1]
    paths = [
        {mount["mountPath"] for mount in one["volumeMounts"] if "service-tunnel" in mount["mountPath"]}
        for one in helpers
    ]
    assert not paths[0] & paths[1]
    for one in helpers:
        port = next(env["value"] for env in one["env"] if env["name"] == "SVC_TUNNEL_METRICS").rpartition(":")[2]
        assert {str(one[probe]["httpGet"]["port"]) for probe in ("livenessProbe", "readinessProbe")} == {port}
