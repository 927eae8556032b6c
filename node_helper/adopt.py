"""Adopting pods that are older than the installation: attachment records from libcni's cache of results.

Container runtimes keep what they asked of CNI for each pod in /var/lib/cni/results. From that come the same
records that the plugin writes, and the running helper then configures these pods like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from cni_plugin import attachment, netns
from cni_plugin.attachment import READY, Attachment
from cni_plugin.environment import is_identifier, is_interface

_KIND = "cniCacheV1"
"""What libcni writes since its version 0.8."""


class NotAdoptable(Exception):
    """A cache entry of which no record can be made; the text says why."""


def adopt(results: Path, run_dir: Path) -> Iterator[tuple[str, str]]:
    """Writes the records that are missing; yields (pod or file, what became of it) for each cache entry."""
    for file in sorted(results.iterdir()) if results.is_dir() else ():
        try:
            record = _record(file)
        except NotAdoptable as error:
            yield file.name, f"not adopted: {error}"
            continue
        name = f"{record.namespace}/{record.name}"
        if attachment.read(str(run_dir), record.network, record.container, record.interface) is not None:
            yield name, "has a record already"
            continue
        attachment.ensure_directory(str(run_dir))
        attachment.write(str(run_dir), record)
        yield name, "adopted"


def _record(file: Path) -> Attachment:
    try:
        entry = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise NotAdoptable(f"unreadable: {error}") from None
    if not isinstance(entry, dict) or entry.get("kind") != _KIND:
        raise NotAdoptable(f"not an entry of kind {_KIND}")
    try:
        arguments = {str(key): str(value) for key, value in entry.get("cniArgs") or ()}
        path = str(entry.get("netns") or "")
        if not path:
            raise NotAdoptable("this runtime's libcni does not note the network namespace: restart the pod")
        try:
            inode = netns.of_pod(path)[1]
        except netns.NoPodNetns as error:
            raise NotAdoptable(f"its network namespace: {error}") from None
        if "K8S_POD_NAME" not in arguments:
            raise NotAdoptable("it is no pod of Kubernetes")
        network, container, interface = (str(entry[key]) for key in ("networkName", "containerId", "ifName"))
        if not (is_identifier(network) and is_identifier(container) and is_interface(interface)):
            # They become a file's name.
            raise NotAdoptable(f"its names have not the form of CNI's: {network!r}, {container!r}, {interface!r}")
        return Attachment(
            network=network,
            container=container,
            interface=interface,
            netns=path,
            inode=inode,
            namespace=arguments.get("K8S_POD_NAMESPACE", ""),
            name=arguments["K8S_POD_NAME"],
            uid=arguments.get("K8S_POD_UID", ""),
            ips=tuple(str(ip_interface(ip["address"]).ip) for ip in _result(entry).get("ips") or ()),
            state=READY,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NotAdoptable(f"not as libcni writes it: {error!r}") from None


def _result(entry: dict[str, Any]) -> dict[str, Any]:
    result = entry.get("result")
    if not isinstance(result, dict):
        raise NotAdoptable("it has no result")
    return result
