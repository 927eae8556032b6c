"""The helper's settings, as given by flags or SVC_TUNNEL_… variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cni_plugin.tunnel import VXLAN_GPE
from node_helper.vips import VipRules

INGRESS, NODE = "ingress", "node"
ROLES = (NODE, INGRESS)


def draining_mark(state_dir: Path) -> Path:
    """The file whose presence says that this node is to be announced no more; it outlives restarts."""
    return state_dir / "draining"


def has_labels(labels: Mapping[str, str], selector: Iterable[tuple[str, str]]) -> bool:
    """Whether all of the selector's labels are among these; an empty selector fits everything."""
    return all(labels.get(name) == value for name, value in selector)


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    """Name of the Node object of this machine."""
    manifests: Path | None = None
    """Folder of Kubernetes YAML; None: the API server."""
    kubeconfig: Path | None = None
    """How to reach the API server; None: as a pod of the cluster."""
    roles: frozenset[str] = frozenset(ROLES)
    ingress_selector: tuple[tuple[str, str], ...] = (("node", "tunnel"),)
    """Labels that a Node must have for its ingress role to take effect; none: always."""
    socket: Path = Path("/run/service-tunnel/helper.sock")
    run_dir: Path = Path("/run/service-tunnel")
    state_dir: Path = Path("/var/lib/service-tunnel")
    mode: str = VXLAN_GPE
    buckets: int = 256
    seed: int = 0x7475_6E6C
    """Of HMARK: the same on all ingress nodes, or they send one flow to different pods."""
    drain_time: float = 3600.0
    """Seconds for which connections of a bucket that moved are handed on to its previous owner."""
    resync: float = 30.0
    """Seconds between two comparisons of everything with the kernel."""
    probe_interval: float = 0.0
    """Seconds between two probes of a VIP that answers; 0: none."""
    vip_rules: VipRules = field(default_factory=VipRules)
    namespace_kept: bool = False
    """The router's namespace is made and kept by another program (`node_helper.keeper`)."""
    results: Path = Path("/var/lib/cni/results")
    """libcni's cache of results, from which pods are adopted that are older than the installation."""
    metrics: tuple[str, int] | None = None
    """Address and port of the metrics' HTTP server."""
