"""What this node plays as an ingress node: whether it takes VIPs' packets, and whether it asks for them.

A node that is to be one no more still gets packets for a while, and has connections of clients who know nothing of it.
So its announcement goes first, and its forwarding stays for a time. Neither a cordon ends an announcement, which says
that no new pods are wanted, nor the end of a helper, whose data path stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from node_helper.model import Node
from node_helper.settings import INGRESS, Settings, has_labels

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""A Node's label, whatever its value: well known of Kubernetes."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the node plays now."""

    forwards: bool
    silent: str = ""
    """Why it announces nothing, in words; empty where it does."""
    ends_in: float | None = None
    """Seconds until it stops forwarding, where that is to come."""


class IngressPart:
    """Remembers since when the node has been leaving."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._leaving_since: float | None = None

    def play(self, node: Node | None, drained: bool, stands: bool) -> Part:
        """`drained`: by the operator's word; `stands`: the node has a router, and so has been an ingress node."""
        settings = self._settings
        if INGRESS not in settings.roles:
            return Part(forwards=False)
        selector = settings.ingress_selector
        if selector and (node is None or not has_labels(node.labels, selector)):
            return self._leave(stands)
        self._leaving_since = None
        if drained:
            return Part(forwards=True, silent="drained by `service-tunnel-helper drain`; `undrain` ends it")
        if node is not None and EXCLUDED in node.labels:
            return Part(forwards=True, silent=f"the Node has the label {EXCLUDED}")
        return Part(forwards=True)

    def _leave(self, stands: bool) -> Part:
        if not stands:
            self._leaving_since = None
            return Part(forwards=False)
        if self._leaving_since is None:
            self._leaving_since = self._clock()
        left = self._leaving_since + self._settings.drain_time - self._clock()
        if left <= 0:
            return Part(forwards=False)
        labels = ",".join(f"{name}={value}" for name, value in self._settings.ingress_selector)
        return Part(forwards=True, silent=f"the Node has no label {labels} any more", ends_in=left)
