"""The manifests of install/kubernetes: a real API server takes them as they are, and kustomize makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.api.cluster_api import PROJECT
from conformance.api.control_plane import ControlPlane

MANIFESTS = PROJECT / "install" / "kubernetes"
EXAMPLE = PROJECT / "docs" / "examples" / "kustomize"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())


def kustomized(control: ControlPlane, folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(control.kubectl("kustomize", str(folder))))


def keyed(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): on_one_line(one) for one in objects}


def on_one_line(value: Any) -> Any:
    """With the line breaks of long expressions as spaces: kustomize breaks them elsewhere."""
    if isinstance(value, dict):
        return {key: on_one_line(one) for key, one in value.items()}
    if isinstance(value, list):
        return [on_one_line(one) for one in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def taken(control: ControlPlane, *objects: dict[str, Any]) -> list[str]:
    """What the server would make of them; raises CommandFailed with what it refuses, unknown fields among that."""
    wanted = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-o", "name")
    return control.kubectl(*wanted, "-f", "-", objects=objects).split()


@pytest.mark.parametrize("name", ["service-tunnel", "bird", "uninstall"])
def test_the_api_server_takes_each_manifest(control: ControlPlane, name: str) -> None:
    objects = list(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()))
    assert len(taken(control, *objects)) == len(objects)


def test_kustomize_makes_of_the_base_what_the_one_file_has(control: ControlPlane) -> None:
    written = list(yaml.safe_load_all((MANIFESTS / "service-tunnel.yaml").read_text()))
    assert keyed(kustomized(control, MANIFESTS / "base")) == keyed(written) and len(keyed(written)) == len(written)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_the_node_daemonset_and_nothing_else(control: ControlPlane, name: str) -> None:
    base = keyed(kustomized(control, MANIFESTS / "base"))
    changed = keyed(kustomized(control, MANIFESTS / "overlays" / name))
    assert len(taken(control, *changed.values())) == len(changed)
    assert [key for key in base if changed[key] != base[key]] == [
        ("DaemonSet", "node")
    ] and changed.keys() == base.keys()
    spec = changed["DaemonSet", "node"]["spec"]["template"]["spec"]
    volumes = {one["name"]: one["hostPath"]["path"] for one in spec["volumes"]}
    mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
    assert mounted == set(volumes)
    if name == "without-installer":
        assert [one["name"] for one in spec["containers"]] == ["helper"]
    else:
        assert not volumes["cni-bin"].startswith("/opt") and volumes["cni-conf"] != "/etc/cni/net.d"


def test_the_example_of_an_own_kustomization_changes_images_and_settings_and_nothing_else(
    control: ControlPlane,
) -> None:
    base = keyed(kustomized(control, MANIFESTS / "base"))
    own = keyed(kustomized(control, EXAMPLE))
    assert len(taken(control, *own.values())) == len(own)
    settings = own["ConfigMap", "service-tunnel"]["data"]
    assert settings.pop("SVC_TUNNEL_VIP_RANGE") == "198.51.100.0/24 2001:db8::/64"
    assert base["ConfigMap", "service-tunnel"]["data"].pop("SVC_TUNNEL_VIP_RANGE") == ""
    images = []
    for key in (("DaemonSet", "node"), ("DaemonSet", "ingress")):
        spec = own[key]["spec"]["template"]["spec"]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            images.append(container["image"])
            container["image"] = "service-tunnel:0.1.0"
    assert set(images) == {"registry.example/service-tunnel:0.1.0"} and len(images) == 4
    assert own == base
