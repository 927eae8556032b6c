"""Keeps pods that already run as the Services want them, through this node's attachment records.

The plugin configures a pod before its program starts; when a Service is annotated, changed or loses its
annotation later, the same code (`cni_plugin.pod`) brings the running pod along. Pods that are older than the
installation have no record; those of which tunnels are wanted are adopted at the next full comparison.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from cni_plugin import attachment, leftovers, netns, pod, sharing
from cni_plugin.attachment import Attachment
from cni_plugin.tunnel import NOTHING, PodTunnels
from node_helper.adopt import Outcome, adopt
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.plan.attachments import bears_tunnels, find_pod, pod_tunnels
from node_helper.plan.handovers import Handovers
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService

_log = structlog.get_logger()


@dataclass(slots=True)
class PodRound:
    """Result of one look at all attachments."""

    changed: dict[str, list[str]] = field(default_factory=dict)
    """Operations by pod."""
    problems: list[Problem] = field(default_factory=list)
    attachments: int = 0
    """Readable records of this node."""
    tunnelled_ips: set[str] = field(default_factory=set)
    """Addresses of local pods that have tunnels."""


class PodKeeper:
    """Goes through the attachment records and configures what differs."""

    def __init__(self, run_dir: Path, results: Path) -> None:
        """`results`: libcni's cache, from which pods are adopted."""
        self._run_dir = str(run_dir)
        self._results = results
        self._not_adopted: Mapping[ObjectKey, str] = {}
        """Pods without record at the last full look, with what the cache says of them."""
        self._unfinished: set[str] = set()
        """Records, by their file names, of pods that could not be configured: what they say is not yet so."""

    def records(self) -> tuple[list[Attachment], list[str]]:
        """All readable records, and a sentence for each that is not."""
        return attachment.read_all(self._run_dir)

    def look(
        self,
        services: Sequence[TunnelService],
        index: ServiceIndex,
        snapshot: Snapshot,
        handovers: Handovers,
        node: str,
        full: bool,
    ) -> PodRound:
        """Configures pods whose wanted tunnels changed; with `full` compares every pod with its netns.

        With `full`, too, records of pods that ended without a DEL are removed, whatever state they are in: a
        runtime that knows no GC would leave them until the next reboot. And pods that lack one are adopted.
        """
        result = PodRound()
        records, unreadable = self.records()
        if full:
            records = [record for record in records if not self._forget_if_gone(record)]
        bare = self._bare(services, index, snapshot, node, records)
        if full:
            adopted = self._adopt({pod for pod, _ in bare if not _ends(snapshot, pod)})
            records += adopted
            bare = _other_than(adopted, bare)
        result.attachments = len(records)
        result.problems += [Problem("File", ObjectKey("", "attachments"), "UnreadableRecord", t) for t in unreadable]
        interfaces = {(record.container, record.interface) for record in records}
        for record in records:
            if not (record.standalone or bears_tunnels(record.container, record.interface, interfaces)):
                self._hand_over(record)
                continue
            wanted = self._wanted(record, index, snapshot, handovers)
            if wanted.tunnels:
                result.tunnelled_ips.update(record.ips)
            # While ADD runs the pod is the plugin's; its end is a change of the record, which brings us here again.
            if record.state != attachment.READY or record.standalone:
                continue
            unfinished = record.file_name in self._unfinished
            if wanted != record.tunnels or unfinished or (full and wanted.tunnels):
                try:
                    self._configure(record, wanted, result)
                except OSError as error:
                    message = (
                        f"the attachment record of pod {record.namespace}/{record.name} cannot be written: {error}"
                    )
                    key = ObjectKey(record.namespace, record.name)
                    result.problems.append(Problem("Pod", key, "RecordNotWritten", message))
        result.problems += [_without_record(pod, of, node, self._not_adopted.get(pod, "")) for pod, of in bare]
        return result

    @staticmethod
    def _bare(
        services: Sequence[TunnelService],
        index: ServiceIndex,
        snapshot: Snapshot,
        node: str,
        records: Iterable[Attachment],
    ) -> list[tuple[ObjectKey, TunnelService]]:
        """The node's pods that are to have tunnels and have no record, with a Service of each."""
        found = _bare_endpoints(services, snapshot, node) if snapshot.endpoints else _bare_pods(index, snapshot, node)
        return _other_than(records, found)

    def _adopt(self, pods: Collection[ObjectKey]) -> list[Attachment]:
        """The records that these pods have from now on; of the others is kept why not."""
        self._not_adopted = {}
        if not pods:
            return []
        try:
            outcomes = adopt(self._results, Path(self._run_dir), pods)
        except OSError as error:
            self._not_adopted = dict.fromkeys(pods, f"not adopted: {error}")
            return []
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        for record in records:
            _log.info("took on a pod that is older than the installation", pod=f"{record.namespace}/{record.name}")
        self._not_adopted = {pod: _why(pod, outcomes, self._results) for pod in pods}
        return records

    @staticmethod
    def _wanted(record: Attachment, index: ServiceIndex, snapshot: Snapshot, handovers: Handovers) -> PodTunnels:
        if record.standalone:
            return record.tunnels
        found = find_pod(snapshot, record.namespace, record.name)
        # A pod that left the source keeps what it has until its DEL: it may still be answering clients.
        return record.tunnels if found is None else pod_tunnels(index, snapshot, found, handovers)

    def _forget_if_gone(self, record: Attachment) -> bool:
        """Removes the record of a pod whose namespace is gone (the node crashed, the runtime's state was lost)."""
        found = netns.identity(record.netns)
        if found is not None and found[1] == record.inode:
            return False
        with contextlib.suppress(OSError):  # it is tried again at the next look
            attachment.remove(self._run_dir, record.network, record.container, record.interface)
        return True

    def _hand_over(self, record: Attachment) -> None:
        """What the pod has is another attachment's to keep, and to take away."""
        if record.tunnels.tunnels and record.state == attachment.READY:
            with contextlib.suppress(OSError):  # it is tried again at the next look
                attachment.replace(self._run_dir, record, record.replace(tunnels=NOTHING))

    def _configure(self, record: Attachment, wanted: PodTunnels, result: PodRound) -> None:
        if self._forget_if_gone(record):
            return
        pod_key = ObjectKey(record.namespace, record.name)
        key = (record.network, record.container, record.interface)
        # As the plugin does: whoever comes after us, should we be killed, knows what may be in the pod.
        both = dict.fromkeys(record.tunnels.tunnels + wanted.tunnels)
        announced = record.replace(tunnels=wanted.replace(tunnels=tuple(both)))
        if announced != record and not attachment.replace(self._run_dir, record, announced):
            return  # a DEL or another ADD was faster: the pod is the plugin's
        warnings: list[str] = []
        try:
            operations = sharing.configure(
                self._run_dir, key, record.netns, record.inode, wanted, announced.tunnels, warnings.append
            )
        except pod.PodError as error:
            if not isinstance(error.__cause__, netns.NetnsReplaced):  # else the next look finds that the pod is gone
                message = f"pod {pod_key}: {error}: {error.details}"
                result.problems.append(Problem("Pod", pod_key, "PodNotConfigured", message))
                self._unfinished.add(record.file_name)
            return
        self._unfinished.discard(record.file_name)
        if operations:
            result.changed[str(pod_key)] = operations
        for warning in warnings if wanted != record.tunnels else ():
            _log.warning("a pod gets less than its Services say", pod=str(pod_key), warning=warning)
        configured = announced.replace(tunnels=wanted)
        if configured == announced:
            kept = self._now(key) == announced
        else:
            kept = attachment.replace(self._run_dir, announced, configured)
        if not kept:
            self._take_back(key, announced)

    def _now(self, key: tuple[str, str, str]) -> Attachment | None:
        try:
            return attachment.read(self._run_dir, *key)
        except (OSError, ValueError):
            return None  # it is told as UnreadableRecord

    def _take_back(self, key: tuple[str, str, str], record: Attachment) -> None:
        """While the pod was configured its record went, or changed: what a DEL took out is not to be in it again."""
        now = self._now(key)
        if now is None or now.state == attachment.ENDING:
            for trouble in leftovers.clear(self._run_dir, key, record, record.netns):
                _log.warning("a pod that ended while it was configured keeps its tunnels", trouble=trouble)


def _bare_endpoints(
    services: Iterable[TunnelService], snapshot: Snapshot, node: str
) -> Iterable[tuple[ObjectKey, TunnelService]]:
    """The node's pods to which ingress nodes send packets, by what EndpointSlices say."""
    for service in services:
        for endpoint in service.endpoints:
            if endpoint.node != node or endpoint.pod is None:
                continue
            if endpoint.pod in snapshot.pods and snapshot.pods[endpoint.pod].finished:
                continue
            yield endpoint.pod, service


def _bare_pods(index: ServiceIndex, snapshot: Snapshot, node: str) -> Iterable[tuple[ObjectKey, TunnelService]]:
    """The same where no EndpointSlices are watched: by selectors; a pod has been attached once it has an address."""
    for found in snapshot.pods.values():
        if found.node == node and found.ips and not found.terminating:
            for service in index.in_front_of(found):
                yield found.key, service


def _other_than(
    records: Iterable[Attachment], bare: Iterable[tuple[ObjectKey, TunnelService]]
) -> list[tuple[ObjectKey, TunnelService]]:
    attached = {ObjectKey(record.namespace, record.name) for record in records}
    return [(pod_key, service) for pod_key, service in bare if pod_key not in attached]


def _ends(snapshot: Snapshot, pod_key: ObjectKey) -> bool:
    """Whether the pod's own DEL may be what took its record."""
    found = snapshot.pods.get(pod_key)
    return found is not None and found.terminating


def _why(pod_key: ObjectKey, outcomes: Iterable[Outcome], results: Path) -> str:
    told = [outcome.text for outcome in outcomes if outcome.pod == pod_key and outcome.record is None]
    return "; ".join(told) or f"not adopted: {results} has no entry of it"


def _without_record(pod_key: ObjectKey, service: TunnelService, node: str, why: str) -> Problem:
    message = (
        f"pod {pod_key}, an endpoint of Service {service.key}, has no attachment record on {node}: it was "
        "started before the plugin was installed, or its runtime does not use the plugin's chain. "
        + (f"It is {why}. " if why else "It is looked for in libcni's cache at the next full comparison. ")
        + "It gets no tunnel until it has one, or is restarted"
    )
    return Problem("Pod", pod_key, "NoAttachment", message)
