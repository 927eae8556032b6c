"""Adopting pods that are older than the installation: attachment records from libcni's cache of results.

Container runtimes keep what they asked of CNI for each pod in /var/lib/cni/results. From that come the same
records that the plugin writes, and the helper then configures these pods like any other. Older libcni (that of
containerd 1.6, say) does not note there where the pod's network namespace is; it is the one that has the pod's
addresses, on the interface of that name, and then only if no other pod could be meant.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from cni_plugin import attachment, netns
from cni_plugin.attachment import READY, Attachment
from cni_plugin.environment import is_identifier, is_interface
from node_helper.model import ObjectKey
from node_helper.pod_addresses import FOLDERS, Place, PodAddresses

_KIND = "cniCacheV1"
"""What libcni writes since its version 0.8."""


class NotAdoptable(Exception):
    """A cache entry of which no record can be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry of the cache."""

    name: str
    """The pod as namespace/name, or the file where it names none."""
    text: str
    pod: ObjectKey | None = None
    record: Attachment | None = None
    """The record that was written."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the cache that is a pod's; where its namespace is may still have to be found."""

    record: Attachment
    sandbox: str
    """Path of the namespace, by the CNI result; empty where that does not say."""
    written: int
    """When, in nanoseconds of the clock of files."""

    @property
    def pod(self) -> ObjectKey:
        return ObjectKey(self.record.namespace, self.record.name)

    @property
    def owner(self) -> tuple[str, str, str]:
        return self.record.network, self.record.container, self.record.interface


def adopt(
    results: Path, run_dir: Path, only: Collection[ObjectKey] | None = None, folders: Sequence[str] = FOLDERS
) -> list[Outcome]:
    """Writes the records that are missing and says of each cache entry what became of it; raises OSError.

    `only`: of these pods alone. `folders`: where network namespaces are looked for that an entry does not name.
    """
    outcomes: list[Outcome] = []
    entries: list[_Entry] = []
    for file in sorted(results.iterdir()) if results.is_dir() else ():
        try:
            entries.append(_entry(file))
        except NotAdoptable as error:
            outcomes.append(Outcome(file.name, f"not adopted: {error}"))
    records = {(found.network, found.container, found.interface): found for found in _records(run_dir)}
    places = _Places(entries, list(records.values()), PodAddresses(folders))
    for entry in entries:
        if only is not None and entry.pod not in only:
            continue
        name = str(entry.pod)
        if entry.owner in records:
            outcomes.append(Outcome(name, "has a record already", entry.pod))
            continue
        try:
            place = places.of(entry)
        except NotAdoptable as error:
            outcomes.append(Outcome(name, f"not adopted: {error}", entry.pod))
            continue
        record = entry.record.replace(netns=place.path, inode=place.inode)
        attachment.ensure_directory(str(run_dir))
        attachment.write(str(run_dir), record)
        outcomes.append(Outcome(name, "adopted", entry.pod, record))
    return outcomes


def _records(run_dir: Path) -> list[Attachment]:
    return attachment.read_all(str(run_dir))[0]


class _Places:
    """Where pods' namespaces are: by what the cache notes, else by their addresses."""

    def __init__(self, entries: Sequence[_Entry], records: Sequence[Attachment], addresses: PodAddresses) -> None:
        self._addresses = addresses
        self._taken = {(record.inode, record.interface): record for record in records}
        self._claims: dict[tuple[str, str], list[_Entry]] = {}
        """Entries without a namespace, by each address that they have, on an interface."""
        for entry in entries:
            for key in _addresses_of(entry):
                self._claims.setdefault(key, []).append(entry)

    def of(self, entry: _Entry) -> Place:
        """Raises NotAdoptable."""
        if entry.record.netns:
            return _place(entry.record.netns)
        ips, interface = entry.record.ips, entry.record.interface
        found = self._addresses.having(interface, ips)
        where = f"{' and '.join(ips) or 'its address (the cache names none)'} on {interface}"
        if entry.sandbox:
            # The plugin that made the interface has said where. The address must be there all the same.
            found &= {place for place in found if place.inode == _place(entry.sandbox).inode}
        if not found:
            raise NotAdoptable(
                f"this runtime's libcni does not note the network namespace, and none that is here has {where}: "
                "it has ended, or is to be restarted"
            )
        if len(found) > 1:
            paths = ", ".join(sorted(place.path for place in found))
            raise NotAdoptable(
                "this runtime's libcni does not note the network namespace, and more than one has "
                f"{where} ({paths}): restart the pod"
            )
        (place,) = found
        if entry.written < place.since:
            raise NotAdoptable(
                f"its entry of the cache is older than the network namespace with {where}: it has ended, or is to be "
                "restarted"
            )
        taken = self._taken.get((place.inode, interface))
        if taken is not None:
            raise NotAdoptable(f"the namespace with {where} is that of {taken.namespace}/{taken.name}, by its record")
        others = {
            other.owner for key in _addresses_of(entry) for other in self._claims[key] if other.written >= place.since
        }
        if not entry.sandbox and others != {entry.owner}:
            # One of them is left from a pod that ended, and nothing says which.
            raise NotAdoptable(f"another entry of the cache has {where}, too: restart the pod")
        return place


def _addresses_of(entry: _Entry) -> list[tuple[str, str]]:
    return [] if entry.record.netns else [(entry.record.interface, address) for address in entry.record.ips]


def _place(path: str) -> Place:
    try:
        return Place(path, netns.of_pod(path)[1])
    except netns.NoPodNetns as error:
        raise NotAdoptable(f"its network namespace: {error}") from None


def _entry(file: Path) -> _Entry:
    try:
        written = file.stat().st_mtime_ns
        entry = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise NotAdoptable(f"unreadable: {error}") from None
    if not isinstance(entry, dict) or entry.get("kind") != _KIND:
        raise NotAdoptable(f"not an entry of kind {_KIND}")
    try:
        arguments = {str(key): str(value) for key, value in entry.get("cniArgs") or ()}
        if "K8S_POD_NAME" not in arguments:
            raise NotAdoptable("it is no pod of Kubernetes")
        network, container, interface = (str(entry[key]) for key in ("networkName", "containerId", "ifName"))
        if not (is_identifier(network) and is_identifier(container) and is_interface(interface)):
            # They become a file's name.
            raise NotAdoptable(f"its names have not the form of CNI's: {network!r}, {container!r}, {interface!r}")
        result = _result(entry)
        record = Attachment(
            network=network,
            container=container,
            interface=interface,
            netns=str(entry.get("netns") or ""),
            inode=0,
            namespace=arguments.get("K8S_POD_NAMESPACE", ""),
            name=arguments["K8S_POD_NAME"],
            uid=arguments.get("K8S_POD_UID", ""),
            ips=tuple(str(ip_interface(ip["address"]).ip) for ip in result.get("ips") or ()),
            state=READY,
        )
        return _Entry(record, _sandbox(result, interface), written)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAdoptable(f"not as libcni writes it: {error!r}") from None


def _result(entry: dict[str, Any]) -> dict[str, Any]:
    result = entry.get("result")
    if not isinstance(result, dict):
        raise NotAdoptable("it has no result")
    return result


def _sandbox(result: dict[str, Any], interface: str) -> str:
    named = [one for one in result.get("interfaces") or () if one.get("name") == interface]
    return next((str(one["sandbox"]) for one in named if one.get("sandbox")), "")
