"""The helper's metrics, all named `service_tunnel_…`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


class Metrics:
    """One set of metrics per helper; its own registry, so that tests can have several in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"service_tunnel_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"service_tunnel_{name}", text, labels, registry=self.registry)

        self.services = gauge("services", "Services that are served.")
        self.vips = gauge("vips", "VIPs that this node forwards.")
        self.problems = gauge("problems", "Objects with something wrong, by reason.", "reason")
        self.attachments = gauge("attachments", "Attachment records of this node's pods.")
        self.asks = counter("asks", "Questions of the plugin, by answer.", "answer")
        self.syncs = counter("syncs", "Comparisons of wanted with present state.", "kind")
        self.sync_failures = counter("sync_failures", "Comparisons that ended with an error.")
        self.route_changes = counter("route_changes", "Routes of bucket tables that were written or deleted.")
        self.kernel_refusals = counter("kernel_refusals", "Changes that the kernel refused.")
        self.table_writes = counter("table_writes", "Bucket tables that this helper stored.")
        self.sync_seconds = Histogram(
            "service_tunnel_sync_seconds", "Duration of a comparison and its changes.", registry=self.registry
        )

    def serve(self, address: str, port: int) -> None:
        """Answers HTTP from a thread of its own; raises OSError when the port is taken."""
        start_http_server(port, address, registry=self.registry)
