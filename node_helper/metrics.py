"""The helper's metrics, all named `service_tunnel_…`; docs/operating.md describes each."""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cni_plugin import __version__

_CYCLE = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds: from a change of one endpoint to the start with everything to program."""
_ASK = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Seconds: from an answer out of memory to one that waits for the kernel."""


class Metrics:
    """One set of metrics per helper; its own registry, so that tests can have several in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"service_tunnel_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"service_tunnel_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"service_tunnel_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.build = gauge("build_info", "Always 1; the labels say what runs.", "version", "python")
        self.build.labels(__version__, platform.python_version()).set(1)
        self.objects = gauge("objects", "Objects that the source has, by kind.", "kind")
        self.services = gauge("services", "Services that are served.")
        self.endpoints = gauge("endpoints", "Endpoints of the served Services, by whether they get traffic.", "state")
        self.vips = gauge("vips", "VIPs of this ingress node, by what it does for them.", "state")
        self.routes = gauge("routes", "Routes of bucket tables that the kernel has.")
        self.problems = gauge("problems", "Objects with something wrong, by reason.", "reason")
        self.attachments = gauge("attachments", "Attachment records of this node's pods.")
        self.draining = gauge("draining", "1 while this node forwards and is not announced, else 0.")
        self.last_success = gauge(
            "last_success_timestamp_seconds", "When the last comparison of wanted with present state succeeded."
        )
        self.errors = counter("errors", "Problems that came and comparisons that failed, by reason.", "reason")
        self.asks = counter("asks", "Questions of the plugin, by answer.", "answer")
        self.ask_seconds = histogram(
            "ask_seconds", "Time from a question of the plugin to its answer, by answer.", _ASK, "answer"
        )
        self.syncs = counter("syncs", "Comparisons of wanted with present state, by what they looked at.", "kind")
        self.sync_failures = counter("sync_failures", "Comparisons that ended with an error.")
        self.sync_seconds = histogram("sync_seconds", "Duration of a comparison and its changes.", _CYCLE)
        self.convergence_seconds = histogram(
            "convergence_seconds", "Time from the first news of a change to the kernel's state that follows it.", _CYCLE
        )
        self.route_changes = counter("route_changes", "Routes of bucket tables that were written or deleted.")
        self.bucket_moves = counter("bucket_moves", "Buckets of VIPs that went from one endpoint to another here.")
        self.kernel_refusals = counter("kernel_refusals", "Changes that the kernel refused.")
        self.probes = counter("probes", "Probes of VIPs through their tunnels, by outcome.", "outcome")
        self.table_writes = counter("table_writes", "Bucket tables that this helper stored.")
